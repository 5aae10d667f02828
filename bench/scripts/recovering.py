"""A small data-parallel training for bench/recovery.py, the same under Lepton and under torchrun.

It writes one line into its own file when it starts and one when it has made the first step of that start; a checkpoint every 10 steps.
"""

import json
import os
import sys
import time
from pathlib import Path

begun = time.time()

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

try:
    from lepton_trainer.report import report
except ImportError:

    def report(**_):  # type: ignore[misc]
        pass


STEP_SECONDS = 0.02
folder = Path(sys.argv[1])
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
store = f"{os.environ['MASTER_PORT']}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def note(**values: float | int | str) -> None:
    with (folder / f"rank-{os.getpid()}").open("a") as file:
        file.write(json.dumps({"rank": rank, "world": world, "pid": os.getpid(), "store": store, **values}) + "\n")


note(what="start", begun=begun, time=time.time())
torch.set_num_threads(1)
checkpoint = folder / "checkpoint.pt"
dist.init_process_group("gloo")
model = DistributedDataParallel(nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
step = 0
if checkpoint.exists():
    saved = torch.load(checkpoint)
    step = saved["step"]
    model.module.load_state_dict(saved["model"])
first = step + 1
while True:
    step += 1
    loss = model(torch.randn(32, 64)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step == first:
        note(what="first step", time=time.time(), step=step)
    if step == first + 20:
        note(what="steady", time=time.time(), step=step)
    report(step=step, loss=loss, samples=32 * world)
    if rank == 0 and step % 10 == 0:
        torch.save({"step": step, "model": model.module.state_dict()}, checkpoint.with_suffix(".tmp"))
        checkpoint.with_suffix(".tmp").replace(checkpoint)
    time.sleep(STEP_SECONDS)
