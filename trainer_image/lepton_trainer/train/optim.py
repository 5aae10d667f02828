"""Optimisers from the configuration, and an average of the weights. Learning rates are set each step from `schedule`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lepton_trainer.train.settings import shared


class Muon(Optimizer):
    """Momentum, orthogonalised by a Newton-Schulz iteration (Jordan et al., 2024), for matrices and flattened kernels.

    The update of a matrix m x n is scaled by sqrt(max(1, m / n)), so one learning rate suits all shapes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"]
                momentum.lerp_(parameter.grad, 1.0 - group["momentum"])
                update = orthogonal(parameter.grad.lerp(momentum, group["momentum"]).flatten(1))
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                scale = max(1.0, update.shape[0] / update.shape[1]) ** 0.5
                parameter.add_(update.view_as(parameter), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest half-orthogonal matrix, roughly: five quintic Newton-Schulz steps, singular values near 1; the shape stays."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = (wide.bfloat16() if wide.is_cuda else wide.float()) / (wide.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    result: Tensor = (x if matrix.shape[0] <= matrix.shape[1] else x.T).to(matrix.dtype)
    return result


def build(settings: shared.Optimizer, model: nn.Module) -> list[Optimizer]:
    """One optimiser, or two for Muon. Weight decay falls on matrices and kernels, not on gains, biases and embeddings."""
    matrices, embeddings, vectors, hidden = [], [], [], []
    for name, parameter in model.named_parameters():
        if name.startswith("embedding"):
            embeddings.append(parameter)
        elif parameter.dim() < 2:
            vectors.append(parameter)
        elif settings.name == "muon" and name.startswith("blocks"):
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": embeddings + vectors, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    found: list[Optimizer] = []
    if settings.name == "sgd":
        found.append(SGD(groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0))
    else:
        fused = next(model.parameters()).is_cuda or settings.name == "adamw"
        found.append(AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), fused=fused))
    if hidden:
        found.append(Muon(hidden, settings.muon_learning_rate, settings.momentum, settings.weight_decay))
    for optimizer in found:
        for group in optimizer.param_groups:
            group["highest"] = group["lr"]
    return found


def set_rate(optimizers: list[Optimizer], factor: float) -> None:
    """Set every group's rate to `factor` of its highest."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["highest"] * factor


def create_state(optimizers: list[Optimizer]) -> None:
    """Make the optimisers create their state without moving the weights, so that there is something to load a checkpoint into."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.zero_()


def state_tensors(optimizers: list[Optimizer], names: dict[int, str]) -> dict[str, Tensor]:
    """The optimisers' state by name, e.g. `blocks.0.feed.up.weight.exp_avg`; `names` maps id(parameter) to its name in the plain model."""
    found: dict[str, Tensor] = {}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    found[f"{names[id(parameter)]}.{key}"] = value
    return found


class Average:
    """An exponential moving average of the weights, kept in fp32 beside the model and swapped in for evaluation."""

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.live = [p.data for p in parameters.values()]
        self.shadow = {name: p.detach().clone() for name, p in parameters.items()}

    @torch.no_grad()
    def restart(self) -> None:
        """Begin again from the weights as they are."""
        for shadow, live in zip(self.shadow.values(), self.live, strict=True):
            shadow.copy_(live)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the weights after step `step` (from 1); early on the average is shorter, so that the start is forgotten."""
        decay = min(self.decay, step / (step + 10.0))
        shadows: list[Any] = list(self.shadow.values())
        torch._foreach_lerp_(shadows, self.live, 1.0 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the weights and their average; a second call undoes it exactly."""
        for shadow, live in zip(self.shadow.values(), self.live, strict=True):
            kept = live.clone()
            live.copy_(shadow)
            shadow.copy_(kept)
