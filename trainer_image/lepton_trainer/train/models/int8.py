"""Layers whose weights are whole numbers of 8 bits, one scale per output; activations are rounded to 8 bits as they come.

The stored tensors are plain, so a model needs no library to be loaded. The products are exact sums of integers: in int8 on a GPU where the
sizes go, elsewhere in fp32, which is smaller on disk and on the wire, and not faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Int8Linear(nn.Module):
    """x [..., inputs] -> [..., outputs]."""

    weight: Tensor
    scale: Tensor

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(plain.weight.shape, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(plain.weight.shape[0]))
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(dim=-1, keepdim=True).clamp_min(1e-12) / 127.0
        whole = (x / step).round()
        y = _product(whole, self.weight) * step * self.scale
        return y if self.bias is None else y + self.bias


class Int8Conv2d(nn.Module):
    """Images [n, c, h, w] -> [n, outputs, h', w']; one step of rounding for each image."""

    weight: Tensor
    scale: Tensor

    def __init__(self, plain: nn.Conv2d) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(plain.weight.shape, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(plain.weight.shape[0]))
        self.bias = plain.bias
        self.settings: dict[str, Any] = {"stride": plain.stride, "padding": plain.padding}

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(dim=(1, 2, 3), keepdim=True).clamp_min(1e-12) / 127.0
        y = F.conv2d((x / step).round(), self.weight.to(x.dtype), **self.settings) * step * self.scale.view(1, -1, 1, 1)
        return y if self.bias is None else y + self.bias.view(1, -1, 1, 1)


def _product(whole: Tensor, weight: Tensor) -> Tensor:
    if whole.is_cuda and weight.shape[0] % 8 == 0 and weight.shape[1] % 8 == 0:
        rows = whole.flatten(0, -2)
        if len(rows) > 16:  # the kernel's least
            return torch._int_mm(rows.to(torch.int8), weight.t()).to(whole.dtype).view(*whole.shape[:-1], -1)
    return F.linear(whole, weight.to(whole.dtype))


def replace(model: nn.Module, names: Iterable[str]) -> None:
    """Put 8-bit layers, still without their weights, in the place of the named ones."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        parent, plain = model.get_submodule(path), model.get_submodule(name)
        if not isinstance(plain, nn.Linear | nn.Conv2d):
            raise ValueError(f"{name} is no layer that can have 8-bit weights")
        layer = Int8Linear(plain) if isinstance(plain, nn.Linear) else Int8Conv2d(plain)
        if isinstance(parent, nn.ModuleDict):
            parent[leaf] = layer
        else:
            setattr(parent, leaf, layer)
