"""A small data-parallel training that writes down what it did, and does to itself what a test asks for.

The ledger has one line per start (`start GENERATION RANK WORLD RESUMED PID PORT`) and one per rank and step
(`step GENERATION STEP RANK SAMPLE...`), written when the step's all-reduce is done. A fault is a file, `fault-RANK` or
`start-fault-RANK`, holding a word.
"""

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from lepton_trainer.report import checkpoint_dir, report, should_stop

BATCH = 12

parser = argparse.ArgumentParser()
parser.add_argument("--ledger", type=Path, required=True)
parser.add_argument("--steps", type=int, default=100_000, help="the last step, unless a file named `end` in the ledger says less")
parser.add_argument("--every", type=int, default=5, help="steps from one checkpoint to the next")
parser.add_argument("--seconds", type=float, default=0.02, help="of a step")
parser.add_argument("--stop", action="store_true", help="call should_stop()")
options = parser.parse_args()

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
generation = os.environ["LEPTON_GENERATION"]
folder = Path(checkpoint_dir() or options.ledger)
options.ledger.mkdir(exist_ok=True)


def note(line: str) -> None:
    descriptor = os.open(options.ledger / "ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.write(descriptor, f"{line}\n".encode())
    os.close(descriptor)


def commit(fault: str) -> None:
    """Dies as the word says."""
    if fault == "exception":
        raise ValueError(f"bad label in rank {rank}")
    if fault == "exit":
        sys.exit(3)
    if fault != "SIGKILL":
        signal.signal(getattr(signal, fault), signal.SIG_DFL)
    os.kill(os.getpid(), getattr(signal, fault))
    time.sleep(60)


def fall(name: str) -> None:
    """Commits the fault in the file `name`-RANK, if there is one, once."""
    file = options.ledger / f"{name}-{rank}"
    if file.exists():
        word = file.read_text()
        file.unlink()
        commit(word)


def save(step: int) -> None:
    part = folder / f".step-{step}.part"
    part.write_text(json.dumps({"step": step}))
    part.replace(folder / f"step-{step}.json")


def last_step() -> int:
    try:
        return int((options.ledger / "end").read_text())
    except FileNotFoundError:
        return options.steps


def resumed() -> int:
    return max((int(path.stem.removeprefix("step-")) for path in folder.glob("step-*.json")), default=0)


torch.set_num_threads(1)
step = resumed()  # before the group is there, and so before anybody can write another
note(f"start {generation} {rank} {world} {step} {os.getpid()} {os.environ['MASTER_PORT']}")
fall("start-fault")
dist.init_process_group("gloo")
end = float(options.steps)
while step < end:
    step += 1
    fall("fault")
    samples = range((step - 1) * BATCH + rank, step * BATCH, world)
    told = torch.tensor([float(sum(samples)), float(last_step()) if rank == 0 else 0.0], dtype=torch.float64)
    time.sleep(options.seconds)
    dist.all_reduce(told)
    loss, end = told.tolist()
    note(f"step {generation} {step} {rank} {' '.join(map(str, samples))}")
    if step % options.every == 0:
        dist.barrier()  # what is saved has been made, and noted, by all
        if rank == 0:
            save(step)
    report(step=step, loss=loss, samples=BATCH, total_steps=int(end))
    if rank == 0:
        print(f"step {step} loss {loss:.1f}")
    if options.stop and should_stop():
        dist.barrier()
        if rank == 0:
            save(step)
            note(f"stopped {generation} {step}")
        break
dist.barrier()
dist.destroy_process_group()
