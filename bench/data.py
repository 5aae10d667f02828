"""Input pipeline: samples per second of the trainer's feed against torch's DataLoader with the same transforms.

    python bench/data.py        -> bench/results/data.json

The DataLoader gets samples one by one from a Dataset, transforms each, and collates, as is usual; with no worker process and with two.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np
import torch
import trainer as bench
from torch.utils.data import DataLoader, Dataset

from lepton_trainer.train import tasks
from lepton_trainer.train.config import parse
from lepton_trainer.train.data.feed import Feed
from lepton_trainer.train.data.order import Order

ROUNDS, BATCH = 10, 64
SAMPLES = {"imageClassification": 6400, "languageModeling": 6400}
CONFIGS: dict[str, dict[str, Any]] = {
    "imageClassification": {},
    "languageModeling": {"data": {"maxBytes": 4_000_000, "tokenizer": "bytes"}, "model": {"context": 128}},
}


class Samples(Dataset[Any]):
    """The task's own transforms, for one sample at a time, in the same order."""

    def __init__(self, task: tasks.Task, count: int) -> None:
        self.task, self.count = task, count
        self.epochs, self.indices = Order(0, task.size).at(0, count)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, position: int) -> tuple[torch.Tensor, torch.Tensor]:
        one = slice(position, position + 1)
        inputs, targets = self.task.batch(self.epochs[one], self.indices[one])
        return inputs[0], targets[0]


def main() -> None:
    torch.set_num_threads(1)
    result: dict[str, Any] = {"unit": "samples per second", "batch": BATCH, "tasks": {}, "raw": {}}
    for name, settings in CONFIGS.items():
        task, count = tasks.build(parse({name: settings})), SAMPLES[name]

        def feed(task: tasks.Task = task, count: int = count) -> float:
            begun = time.perf_counter()
            seen = sum(len(batch.inputs) for batch in Feed(task, 0, 0, count, BATCH, 0, 1))
            assert seen == count
            return count / (time.perf_counter() - begun)

        def loader(workers: int, task: tasks.Task = task, count: int = count) -> float:
            loading = DataLoader(Samples(task, count), BATCH, num_workers=workers, persistent_workers=False)
            begun = time.perf_counter()
            seen = sum(len(inputs) for inputs, _ in loading)
            assert seen == count
            return count / (time.perf_counter() - begun)

        sides = {"ours": feed, "DataLoader, 0 workers": lambda: loader(0), "DataLoader, 2 workers": lambda: loader(2)}
        raw = bench.rounds(sides, ROUNDS)
        best = max(np.median(values) for side, values in raw.items() if side != "ours")
        result["tasks"][name] = {side: bench.summary(values) for side, values in raw.items()} | {
            "ours over the better DataLoader": float(np.median(raw["ours"]) / best)
        }
        result["raw"][name] = raw
    bench.write("data", result)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        import os

        os.environ["LEPTON_CACHE"] = cache
        main()
