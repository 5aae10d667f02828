"""Time of a training step: the built-in loop against a bare PyTorch loop, Lightning, Hugging Face Trainer and accelerate.

    python bench/overhead.py        -> bench/results/overhead.json

All sides train the same language model (0.8 M weights) on the same windows in the same order, AdamW, batch 16, one process, one thread.
A round is 40 steps of each side in turn, of which the last 30 count. Two times are taken: the clock's, which others on the machine
lengthen, and the processor's of all threads of the process, which they hardly do. Peers
that are not installed are named as missing: `uv pip install lightning accelerate transformers` beside the trainer's dependencies.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import trainer as bench
from torch import Tensor, nn

from lepton_trainer.train import loop, reporting, tasks
from lepton_trainer.train.config import parse
from lepton_trainer.train.data.order import Order

ROUNDS, STEPS, SKIP, BATCH, CONTEXT = 15, 40, 10, 16, 64
RATE = 0.001
Moment = tuple[float, float]


def configuration(folder: Path) -> dict[str, Any]:
    return {
        "data": {"maxBytes": 2_000_000, "tokenizer": "bytes"},
        "model": {"preset": "1M", "context": CONTEXT},
        "training": {"steps": STEPS, "globalBatch": BATCH},
        "optimizer": {"learningRate": RATE, "clipNorm": 0.0},
        "checkpoint": {"path": str(folder), "everySteps": 1_000_000},
        "output": {"plots": False, "everySteps": 10},
    }


def now() -> Moment:
    return time.perf_counter(), time.process_time()


def mean_step(times: list[Moment]) -> Moment:
    """Seconds of the clock and of the processor per step."""
    first, last = times[SKIP - 1], times[STEPS - 1]
    return (last[0] - first[0]) / (STEPS - SKIP), (last[1] - first[1]) / (STEPS - SKIP)


class Windows(torch.utils.data.Dataset[Any]):
    """The task's samples in the trainer's order, for the loops that bring their own loader."""

    def __init__(self, task: tasks.Task) -> None:
        self.task = task
        self.epochs, self.indices = Order(0, task.size).at(0, STEPS * BATCH)

    def __len__(self) -> int:
        return STEPS * BATCH

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        one = slice(position, position + 1)
        inputs, targets = self.task.batch(self.epochs[one], self.indices[one])
        return {"input_ids": inputs[0], "labels": targets[0]}


class WithLoss(nn.Module):
    """The model as Hugging Face's Trainer wants it: it computes its own loss."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": mean_loss(self.inner(input_ids), labels)}


def mean_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def made(task: tasks.Task) -> nn.Module:
    torch.manual_seed(0)
    return task.model()


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)


def loader(task: tasks.Task) -> Any:
    return torch.utils.data.DataLoader(Windows(task), BATCH)


def bare(task: tasks.Task) -> Moment:
    model = made(task)
    optimizer = adamw(model)
    order, times = Order(0, task.size), list[Moment]()
    for step in range(STEPS):
        inputs, targets = task.batch(*order.at(step * BATCH, (step + 1) * BATCH))
        mean_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(now())
    return mean_step(times)


def ours(task: tasks.Task) -> Moment:
    times: list[Moment] = []
    plain = reporting.Journal.stepped

    def stepped(self: reporting.Journal, step: int, samples: int, tokens: int) -> None:
        plain(self, step, samples, tokens)
        times.append(now())

    reporting.Journal.stepped = stepped  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            loop.train(parse({"languageModeling": configuration(Path(folder))}))
    finally:
        reporting.Journal.stepped = plain  # type: ignore[method-assign]
    return mean_step(times)


def accelerate(task: tasks.Task) -> Moment:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = made(task)
    model, optimizer, loading = accelerator.prepare(model, adamw(model), loader(task))
    times: list[Moment] = []
    for batch in loading:
        accelerator.backward(mean_loss(model(batch["input_ids"]), batch["labels"]))
        optimizer.step()
        optimizer.zero_grad()
        times.append(now())
    return mean_step(times)


def lightning(task: tasks.Task) -> Moment:
    import lightning

    times: list[Moment] = []

    class Module(lightning.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = made(task)

        def training_step(self, batch: dict[str, Tensor], _index: int) -> Tensor:
            return mean_loss(self.inner(batch["input_ids"]), batch["labels"])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self)

        def on_train_batch_end(self, *_: Any) -> None:
            times.append(now())

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    lightning.Trainer(max_epochs=1, accelerator="cpu", devices=1, **quiet).fit(Module(), loader(task))
    return mean_step(times)


def hugging_face(task: tasks.Task) -> Moment:
    from transformers import Trainer, TrainerCallback, TrainingArguments

    times: list[Moment] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(now())

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=BATCH,
            max_steps=STEPS,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=10,
            disable_tqdm=True,
            max_grad_norm=0.0,
        )
        model = WithLoss(made(task))
        Trainer(model, arguments, train_dataset=Windows(task), callbacks=[Clock()], optimizers=(adamw(model), None)).train()
    return mean_step(times)


PEERS: dict[str, tuple[str, Callable[[tasks.Task], Moment]]] = {
    "accelerate": ("accelerate", accelerate),
    "Lightning": ("lightning", lightning),
    "Hugging Face Trainer": ("transformers", hugging_face),
}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["LEPTON_CACHE"] = cache
        task = tasks.build(parse({"languageModeling": configuration(Path(cache))}))
        sides: dict[str, Callable[[], Moment]] = {"bare": lambda: bare(task), "ours": lambda: ours(task)}
        versions, missing = {}, []
        for name, (package, run) in PEERS.items():
            if importlib.util.find_spec(package) is None:
                missing.append(name)
                continue
            versions[name] = version(package)
            sides[name] = lambda run=run: run(task)  # type: ignore[misc]
        raw = bench.rounds(sides, ROUNDS)
    times = {
        kind: {name: [pair[index] for pair in values] for name, values in raw.items()} for index, kind in enumerate(("clock", "processor"))
    }
    result: dict[str, Any] = {"unit": "seconds per step", "versions": versions, "missing": missing}
    for kind, found in times.items():
        over = {name: [a / b for a, b in zip(values, found["bare"], strict=True)] for name, values in found.items()}
        result[kind] = {name: bench.summary(values) for name, values in found.items()}
        result[f"{kind}, over bare of the same round, median"] = {name: float(np.median(values)) for name, values in over.items()}
    bench.write("overhead", {**result, "raw": times})


if __name__ == "__main__":
    main()
