"""Smaller or faster models from a trained one, each judged before and after; one that costs too much of the metric is not kept and said.

Always in the order distil, prune, quantise, each on what the accepted ones before it left.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lepton_trainer.train import models, tasks
from lepton_trainer.train.checkpoint import Event
from lepton_trainer.train.config import TaskConfig
from lepton_trainer.train.delivery.judging import Candidate, judge
from lepton_trainer.train.delivery.teaching import teach
from lepton_trainer.train.errors import TrainerError
from lepton_trainer.train.models import pruning
from lepton_trainer.train.settings.delivery import Method, Optimise, narrower
from lepton_trainer.train.tasks import Task

ORDER: tuple[Method, ...] = ("distil", "prune", "quantise")
PRUNED = 0.5
"""The share of inner units that go."""
WORTH = 0.95
"""A method has to bring size or latency to this part of what it was."""


class Unsuitable(TrainerError):
    """A method has nothing to work on here; the sentence says why."""


@dataclass(frozen=True, slots=True)
class Work:
    """What the methods work on: the run's task, settings and device, and the model that it trained."""

    task: Task
    config: TaskConfig
    device: torch.device
    original: Candidate


def optimise(settings: Optimise, work: Work, event: Event) -> tuple[Candidate, list[dict[str, Any]]]:
    """The best of what the methods made, and a row of each: before, after, and whether it was kept."""
    best, rows = work.original, []
    for method in ORDER:
        if method not in settings.methods:
            continue
        row: dict[str, Any] = {"method": method, "before": _facts(best, work.task)}
        try:
            after = METHODS[method](best, work)
        except Unsuitable as error:
            reason = str(error)
        else:
            row["after"] = _facts(after, work.task)
            reason = _reason_against(after, best, work, settings.tolerance)
        rows.append(row | {"kept": not reason, "reason": reason})
        if reason:
            event("OptimisationRejected", f"{method}: {reason}")
        else:
            best = after
    return best, rows


def _facts(candidate: Candidate, task: Task) -> dict[str, float]:
    return {
        task.metric: candidate.figures[task.metric],
        "bytes": candidate.size,
        "milliseconds": round(candidate.single, 3),
        "milliseconds_of_32": round(candidate.batch, 3),
    }


def _reason_against(after: Candidate, before: Candidate, work: Work, tolerance: float) -> str:
    """Why the model is not kept; empty where it is. The loss is counted from the original, so that it does not add up."""
    name, mode = work.task.metric, work.task.mode
    had, has = work.original.figures[name], after.figures[name]
    lost = had - has if mode == "max" else has - had
    if not math.isfinite(has) or lost > tolerance:
        return f"{name} went from {had:.4f} to {has:.4f}, more than the tolerance of {tolerance:g}"
    if after.size > WORTH * before.size and after.single > WORTH * before.single:
        return (
            f"it is neither smaller nor faster: {before.size:,} bytes and {before.single:.2f} ms became"
            f" {after.size:,} bytes and {after.single:.2f} ms"
        )
    return ""


def distil(before: Candidate, work: Work) -> Candidate:
    """A student of half the width, or of the next smaller preset, taught by the original for as long as that was trained."""
    config = narrower(work.config, 0.5)
    if config is None:
        raise Unsuitable("there is no smaller model of this kind than the trained one")
    task = tasks.build(config)
    torch.manual_seed(config.training.seed)
    student = task.model().to(work.device)
    teach(student, work.original.model, work.task, config, work.device, part=1.0, rate=1.0)
    return judge(student, task.description, work.task, work.device)


def prune(before: Candidate, work: Work) -> Candidate:
    """Half of the inner units taken out, then a training of half the length to recover."""
    model = copy.deepcopy(before.model)
    if not pruning.prune(model, PRUNED):
        raise Unsuitable("this model has no units that could be taken out whole")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    teach(model, work.original.model, work.task, work.config, work.device, part=0.5, rate=0.5)
    return judge(model, before.description, work.task, work.device)


def quantise(before: Candidate, work: Work) -> Candidate:
    """8-bit weights and activations: matrices by torchao, convolutions, which it leaves alone, by the same rule."""
    weights = _quantised(before.model)
    if not weights:
        raise Unsuitable("this model has no matrices to quantise")
    description = before.description | {"int8": sorted(weights)}
    tensors = {name: t for name, t in before.model.state_dict().items() if name.removesuffix(".weight") not in weights}
    for name, (whole, scale) in weights.items():
        tensors[f"{name}.weight"], tensors[f"{name}.scale"] = whole, scale
    return judge(models.restored(description, work.task.preprocessing, tensors).to(work.device), description, work.task, work.device)


def _quantised(model: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Whole weights and scales by the layer's name.

    Raises:
        Unsuitable: torchao is not there, or does not go with this torch.
    """
    found: dict[str, tuple[Tensor, Tensor]] = {}
    if any(isinstance(module, nn.Linear) for module in model.modules()):
        try:
            from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

            copied = copy.deepcopy(model)
            quantize_(copied, Int8DynamicActivationInt8WeightConfig())
            for name, module in copied.named_modules():
                if isinstance(module, nn.Linear) and type(module.weight) is not nn.Parameter:
                    found[name] = _plain(module.weight)
        except Exception as error:  # whichever way a library fails that does not fit this torch
            cause = f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            raise Unsuitable(f"torchao cannot quantise with torch {torch.__version__} here ({cause})") from None
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.dilation == (1, 1):
            scale = module.weight.detach().flatten(1).abs().amax(dim=1).clamp_min(1e-12) / 127.0
            found[name] = (module.weight.detach() / scale.view(-1, 1, 1, 1)).round().to(torch.int8), scale
    return found


def _plain(weight: Any) -> tuple[Tensor, Tensor]:
    """The integers and scales inside one of torchao's tensors, whose shape has changed over its versions."""
    inner = getattr(weight, "original_weight_tensor", weight)
    if hasattr(inner, "qdata"):
        whole, scale = inner.qdata, inner.scale
    else:
        whole, scale, _ = inner.tensor_impl.get_plain()
    return whole.detach().to(torch.int8).contiguous(), scale.detach().flatten().float().contiguous()


METHODS: dict[Method, Callable[[Candidate, Work], Candidate]] = {"distil": distil, "prune": prune, "quantise": quantise}
