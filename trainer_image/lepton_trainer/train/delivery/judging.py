"""A model judged on the held-out split by one process: figures of merit, size, and how long an answer takes."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lepton_trainer.train.tasks import Task

BATCH = 512
OUTPUTS = 256 << 20
"""Bytes of outputs that pictures are drawn from, at most."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may be exported, and what it is worth; latencies are medians in milliseconds, of 1 and of 32 samples at once."""

    model: nn.Module
    description: dict[str, Any]
    figures: dict[str, float]
    size: int
    single: float
    batch: float


def judge(model: nn.Module, description: dict[str, Any], task: Task, device: torch.device) -> Candidate:
    """`model` in evaluation mode, on `device`."""
    sums = torch.zeros(task.sums, dtype=torch.float64, device=device)
    limit = batch_limit(task)
    with torch.inference_mode():
        for first in range(0, task.test_size, limit):
            inputs, targets = task.test_batch(first, min(first + limit, task.test_size))
            sums += task.score(model(inputs.to(device)), targets.to(device))
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return Candidate(
        model, description, task.metrics(sums.tolist()), size, latency(model, task, device, 1), latency(model, task, device, 32)
    )


def batch_limit(task: Task) -> int:
    """Samples of one pass, fewer where they are long."""
    return max(1, BATCH // max(task.tokens // 16, 1))


def outputs_of(model: nn.Module, task: Task, device: torch.device) -> tuple[Tensor, Tensor]:
    """Outputs and targets of the held-out split on the CPU; of its beginning, where all would not go into `OUTPUTS`."""
    found: list[tuple[Tensor, Tensor]] = []
    limit, taken = batch_limit(task), 0
    with torch.inference_mode():
        for first in range(0, task.test_size, limit):
            inputs, targets = task.test_batch(first, min(first + limit, task.test_size))
            outputs = model(inputs.to(device)).float().cpu()
            taken += outputs.numel() * 4
            if found and taken > OUTPUTS:
                break
            found.append((outputs, targets))
    outputs_all, targets_all = zip(*found, strict=True)
    return torch.cat(outputs_all), torch.cat(targets_all)


def latency(model: nn.Module, task: Task, device: torch.device, count: int) -> float:
    """The median of some passes over `count` samples."""
    inputs, _ = task.test_batch(0, min(count, task.test_size))
    inputs = inputs.to(device)
    seconds: list[float] = []
    with torch.inference_mode():
        begun = time.perf_counter()
        while len(seconds) < 25 and (len(seconds) < 5 or time.perf_counter() - begun < 1.0):
            started = time.perf_counter()
            model(inputs)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:]) * 1e3
