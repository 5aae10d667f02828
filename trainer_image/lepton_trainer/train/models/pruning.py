"""Which units of a model can be taken out whole, so that what is left is a smaller dense model: inner channels and hidden units.

Only units inside a block are: what flows between blocks keeps its width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lepton_trainer.train.models import place, tabular
from lepton_trainer.train.models.resnet import ResidualBlock
from lepton_trainer.train.models.transformer import FeedForward

MULTIPLE = 8
"""Of units that stay in a group: what vector units like."""


@dataclass(frozen=True, slots=True)
class Group:
    """Units that are rows (dimension 0) of some tensors and columns (dimension 1) of another."""

    rows: tuple[str, ...]
    columns: str


def groups(model: nn.Module) -> Iterator[Group]:
    for name, module in model.named_modules():
        if isinstance(module, ResidualBlock):
            norm = [f"{name}.norm1.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
            yield Group((f"{name}.conv1.weight", *norm), f"{name}.conv2.weight")
        elif isinstance(module, FeedForward):
            yield Group((f"{name}.gate.weight", f"{name}.up.weight"), f"{name}.down.weight")
        elif isinstance(module, tabular.Block):
            yield Group((f"{name}.up.weight", f"{name}.up.bias"), f"{name}.down.weight")


@torch.no_grad()
def prune(model: nn.Module, share: float) -> int:
    """Take the `share` of each group's units with the smallest weights out, in place; returns how many went."""
    gone = 0
    for group in list(groups(model)):
        tensors: dict[str, Tensor] = model.state_dict()
        count = len(tensors[group.rows[0]])
        left = min(max(round(count * (1.0 - share) / MULTIPLE), 1) * MULTIPLE, count)
        # Magnitude: what goes into a unit times what comes out of it.
        score = tensors[group.columns].transpose(0, 1).flatten(1).norm(dim=1)
        for name in group.rows:
            if tensors[name].dim() > 1:
                score = score * tensors[name].flatten(1).norm(dim=1)
        kept = score.topk(left).indices.sort().values
        for name in group.rows:
            place(model, name, tensors[name].index_select(0, kept))
        place(model, group.columns, tensors[group.columns].index_select(1, kept).contiguous())
        gone += count - left
    return gone
