"""A training group that counts: each step all-reduces its samples over gloo, and every rank notes what it took before the step is made.

It ends when a file `finish` appears beside its checkpoint; a file `fail-RANK` makes that rank raise.
"""

import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist

from lepton_trainer.report import checkpoint_dir, report, should_stop

BATCH = 12
TOTAL_STEPS = int(os.environ.get("TOTAL_STEPS", "2000"))
STEP_SECONDS = float(os.environ.get("STEP_SECONDS", "0.02"))
SAVE_EVERY = 20


def note(ledger, **line):
    os.write(ledger, (json.dumps(line) + "\n").encode())


def save(folder, step):
    (folder / "state.tmp").write_text(json.dumps({"step": step}))
    (folder / "state.tmp").replace(folder / "state.json")
    report(checkpoint=str(folder / "state.json"))


def main():
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    folder = Path(checkpoint_dir())
    (folder / "ledger").mkdir(parents=True, exist_ok=True)
    state = folder / "state.json"
    saved = [json.loads(state.read_text())["step"] if rank == 0 and state.exists() else 0]
    dist.broadcast_object_list(saved)
    step = saved[0]
    ledger = os.open(folder / "ledger" / f"{os.environ['LEPTON_GENERATION']}-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    note(ledger, start=step, world=world, pid=os.getpid(), worker=os.environ["LEPTON_WORKER_ID"])
    while True:
        samples = list(range(step * BATCH + rank, (step + 1) * BATCH, world))
        note(ledger, step=step + 1, samples=samples)
        fail = folder / f"fail-{rank}"
        if fail.exists():
            fail.unlink()
            raise ValueError("this batch is bad")
        sums = torch.tensor([sum(samples), float(rank == 0 and (folder / "finish").exists())], dtype=torch.float64)
        dist.all_reduce(sums)
        assert sums[0] == sum(range(step * BATCH, (step + 1) * BATCH)), "the group disagrees about the batch"
        step += 1
        report(step=step, loss=1 / step, samples=BATCH, total_steps=TOTAL_STEPS)
        if rank == 0:
            print(f"step {step} loss {1 / step}", flush=True)
        if sums[1] or should_stop():
            if rank == 0:
                save(folder, step)
                print(f"stopped after step {step} of world {world}", flush=True)
            return
        if step % SAVE_EVERY == 0 and rank == 0:
            save(folder, step)
        time.sleep(STEP_SECONDS)


main()
