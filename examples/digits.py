"""A small CNN on scikit-learn's handwritten digits: plain PyTorch DDP that survives losing workers.

    python examples/digits.py                                  one process
    torchrun --nproc-per-node 2 examples/digits.py             stock torchrun
    lepton run examples/digits.yaml --local                    two workers on this machine
    kubectl apply -f examples/digits.yaml                      two pods

What makes it elastic is one integer, `consumed`: how many samples the optimiser has seen. It is in the checkpoint, the order of the
samples is a function of (SEED, epoch) alone, and the global batch stays the same however many ranks share it.
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

try:
    from lepton_trainer.report import checkpoint_dir, report, should_stop
except ImportError:  # without Lepton: nobody to report to

    def report(**_):
        pass

    def should_stop():
        return False

    def checkpoint_dir():
        return None


SEED = 7
EPOCHS = int(os.environ.get("EPOCHS", "60"))
GLOBAL_BATCH = 96
SAVE_EVERY = 50  # steps
HELD_OUT = 360


def build():
    """Images of 1 x 8 x 8, ten classes."""
    return nn.Sequential(
        nn.Conv2d(1, 48, 3, padding=1), nn.ReLU(),
        nn.Conv2d(48, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(96, 96, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(96 * 2 * 2, 10),
    )  # fmt: skip


def load_data():
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    mixed = torch.randperm(len(y), generator=torch.Generator().manual_seed(SEED))
    train, held_out = mixed[HELD_OUT:], mixed[:HELD_OUT]
    return x[train], y[train], x[held_out], y[held_out]


def batch_at(consumed, size):
    """Indices of the global batch that starts at sample `consumed` of the endless sequence of epochs; the last of an epoch is short."""
    epoch, position = divmod(consumed, size)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(SEED + 1 + epoch))
    return order[position : position + GLOBAL_BATCH]


def save(path, **state):
    """All or nothing: whoever reads `path` finds the old checkpoint or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").replace(path)


def main():
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # so small a model gains nothing from more
    x, y, x_held_out, y_held_out = load_data()
    model = build()
    path = Path(checkpoint_dir() or "checkpoints") / "digits.pt"
    saved = [torch.load(path) if rank == 0 and path.exists() else None]
    if world > 1:
        dist.broadcast_object_list(saved)  # rank 0 decides where to resume: the others may not see its disk
    step = consumed = 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    if saved[0]:
        model.load_state_dict(saved[0]["model"])
        optimizer.load_state_dict(saved[0]["optimizer"])
        step, consumed = saved[0]["step"], saved[0]["consumed"]
        print(f"resumed at step {step}, sample {consumed}", flush=True)
    ddp = DistributedDataParallel(model) if world > 1 else model
    steps_per_epoch = -(-len(y) // GLOBAL_BATCH)

    def checkpoint():
        if rank == 0:
            save(path, model=model.state_dict(), optimizer=optimizer.state_dict(), step=step, consumed=consumed)
            report(checkpoint=str(path))

    while consumed < EPOCHS * len(y):
        batch = batch_at(consumed, len(y))
        mine = batch[rank::world]
        # DDP averages gradients over ranks: with a sum over my samples, scaled like this, that is the mean over the global batch.
        loss = F.cross_entropy(ddp(x[mine]), y[mine], reduction="sum") * world / len(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step, consumed = step + 1, consumed + len(batch)
        report(step=step, loss=loss, samples=len(batch), total_steps=EPOCHS * steps_per_epoch)
        if step % steps_per_epoch == 0 and rank == 0:
            print(f"step {step} epoch {consumed // len(y)} loss {loss.item():.4f}", flush=True)
        if should_stop():  # true at the same step on every rank
            checkpoint()
            return
        if step % SAVE_EVERY == 0:
            checkpoint()
    checkpoint()

    model.eval()
    with torch.no_grad():
        accuracy = (model(x_held_out).argmax(1) == y_held_out).float().mean().item()
    report(metrics={"accuracy": accuracy})
    if world > 1:
        dist.destroy_process_group()
    if rank == 0:
        print(f"held-out accuracy {accuracy:.4f}", flush=True)


if __name__ == "__main__":
    main()
