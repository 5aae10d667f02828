"""Checkpoints: how long training stands still for one, and MB/s of saving and loading against torch.save and plain DCP.

    python bench/checkpoint.py        -> bench/results/checkpoint.json

A transformer of 18.9 M weights with AdamW, 227 MB of state, a checkpoint every 20 steps. "Blocked" is all time in `save` and
`before_update`. It is given per checkpoint, as a fraction of the 20 steps between two, and of one step.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import trainer as bench
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lepton_trainer.train import optim
from lepton_trainer.train.checkpoint import Checkpointer
from lepton_trainer.train.models.transformer import Shape, Transformer
from lepton_trainer.train.settings.shared import Optimizer

CHECKPOINTS, EVERY, BATCH, CONTEXT, VOCABULARY = 10, 20, 6, 64, 4096


def main(base: Path) -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = Transformer(Shape(width=512, layers=5, heads=8, kv_heads=4, hidden=1408), VOCABULARY, CONTEXT)
    optimizers = optim.build(Optimizer(), model)
    optim.create_state(optimizers)
    optim.set_rate(optimizers, 1.0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()} | optim.state_tensors(optimizers, names)
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    tokens = torch.randint(VOCABULARY, (BATCH, CONTEXT + 1))

    checkpoints = Checkpointer(str(base / "ours"), {}, keep=1)
    checkpoints.restore(tensors)
    steps: list[float] = []
    blocked: list[float] = []
    writes: list[float] = []
    for step in range(1, CHECKPOINTS * EVERY + EVERY + 1):
        begun = time.perf_counter()
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        checkpoints.before_update()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if step % EVERY == 0 and step <= CHECKPOINTS * EVERY:
            checkpoints.save(step, tensors, {"step": step})
        steps.append(time.perf_counter() - begun)
        if step % EVERY == EVERY - 1 and step > EVERY:  # all that belongs to the checkpoint before has happened
            blocked.append(checkpoints.timing.blocked - sum(blocked))
            writes.append(checkpoints.timing.write)
    checkpoints.close()
    typical = float(np.median(steps))

    def timed(action: Any) -> float:
        begun = time.perf_counter()
        action()
        return size / 1e6 / (time.perf_counter() - begun)

    number = iter(range(10**6))
    ours = Checkpointer(str(base / "speed"), {}, keep=1)
    ours.restore(tensors)

    def save_ours() -> None:
        ours.save(next(number) + 1, tensors, {})
        ours.wait()

    def load_ours() -> None:
        Checkpointer(str(base / "speed"), {}, keep=1).restore(tensors)

    torch.save(tensors, base / "plain.pt")
    save(tensors, storage_writer=FileSystemWriter(base / "dcp"))
    saving = bench.rounds(
        {
            "ours, hashed and committed": lambda: timed(save_ours),
            "torch.save": lambda: timed(lambda: torch.save(tensors, base / "plain.pt")),
            "DCP": lambda: timed(lambda: save(tensors, storage_writer=FileSystemWriter(base / "dcp"))),
        },
        CHECKPOINTS,
    )
    # A restore begins a generation; the next one reads what the last save left all the same.
    ours.wait()
    loading = bench.rounds(
        {
            "ours, hashes compared": lambda: timed(load_ours),
            "torch.load": lambda: timed(lambda: torch.load(base / "plain.pt")),
            "DCP": lambda: timed(lambda: load(tensors, storage_reader=FileSystemReader(base / "dcp"))),
        },
        CHECKPOINTS,
    )
    bench.write(
        "checkpoint",
        {
            "state_mb": size / 1e6,
            "step_seconds": bench.summary(steps),
            "blocked_seconds_per_checkpoint": bench.summary(blocked),
            "blocked_fraction_of_training": sum(blocked) / len(blocked) / (EVERY * typical),
            "blocked_fraction_of_one_step": float(np.median(blocked)) / typical,
            "background_seconds_per_checkpoint": bench.summary(writes),
            "save_mb_per_second": {side: bench.summary(values) for side, values in saving.items()},
            "load_mb_per_second": {side: bench.summary(values) for side, values in loading.items()},
            "raw": {"steps": steps, "blocked": blocked, "save": saving, "load": loading},
        },
    )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
