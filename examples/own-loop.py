"""An ordinary PyTorch script, made elastic and exact: each line that does so is marked.

    python own-loop.py                                    one process
    torchrun --standalone --nproc-per-node 3 own-loop.py  three; kill either, start the other, and it goes on

In a Lepton job its checkpoints go where `checkpoint_dir()` says, and its figures are seen in `kubectl get ltj`.
"""

import os

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from lepton_trainer.report import checkpoint_dir, report, should_stop  # (1)
from lepton_trainer.train import Checkpointer, Order, share  # (1)

BATCH, EPOCHS, SEED = 60, int(os.environ.get("EPOCHS", "4")), 0

if "RANK" in os.environ:
    dist.init_process_group("gloo")
rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
torch.manual_seed(SEED)
digits = load_digits()
images, labels = torch.tensor(digits.images / 16.0, dtype=torch.float32).flatten(1), torch.tensor(digits.target)
model: nn.Module = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model

order = Order(SEED, len(images))  # (2) which sample stands at which position, whatever the number of processes
checkpoints = Checkpointer(checkpoint_dir() or "runs/own-loop", {"model": "mlp", "seed": SEED})  # (3)
state = checkpoints.restore(dict(model.state_dict())) or {"step": 0, "consumed": 0}  # (3)
step, consumed, end = state["step"], state["consumed"], EPOCHS * len(images)

while consumed < end:
    stop = min(consumed + BATCH, end)
    _, mine = order.at(*share(consumed, stop, rank, world))  # (2) this process's part of the global batch
    loss = F.cross_entropy(wrapped(images[mine]), labels[mine], reduction="sum") / (stop - consumed)
    (loss * world).backward()  # (2) DDP averages over processes; the mean is over the global batch
    checkpoints.before_update()  # (3)
    optimizer.step()
    optimizer.zero_grad()
    step, consumed = step + 1, stop
    if "LEDGER" in os.environ:
        with open(f"{os.environ['LEDGER']}-{checkpoints.generation}-{rank}", "a") as ledger:  # noqa: PTH123
            ledger.write(f"{step} {' '.join(map(str, mine))}\n")
    report(step=step, loss=loss * world, samples=BATCH, total_steps=-(-end // BATCH))  # (4)
    leaving = should_stop()  # (4)
    if step % 10 == 0 or consumed == end or leaving:
        checkpoints.save(step, model.state_dict(), {"step": step, "consumed": consumed})  # (3)
    if leaving:
        break

checkpoints.close()  # (3)
if rank == 0 and consumed == end:
    print(f"accuracy on the training data: {(model(images).argmax(1) == labels).float().mean():.4f}")
