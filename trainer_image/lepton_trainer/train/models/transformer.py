"""A decoder transformer: RMSNorm (Zhang and Sennrich, 2019), RoPE (Su et al., 2021), SwiGLU (Shazeer, 2020), grouped-query attention
(Ainslie et al., 2023). Pre-norm, no biases, no dropout, embedding and output weights apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a transformer; `hidden` is the inner width of the SwiGLU block."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int


PRESETS: dict[str, Shape] = {
    "1M": Shape(width=128, layers=4, heads=4, kv_heads=2, hidden=352),
    "4M": Shape(width=256, layers=5, heads=8, kv_heads=4, hidden=704),
    "124M": Shape(width=768, layers=12, heads=12, kv_heads=4, hidden=2304),
    "1.5B": Shape(width=1600, layers=48, heads=25, kv_heads=5, hidden=4608),
    "1B": Shape(width=2048, layers=16, heads=32, kv_heads=8, hidden=8192),
    "3B": Shape(width=3072, layers=28, heads=24, kv_heads=8, hidden=8192),
    "8B": Shape(width=4096, layers=32, heads=32, kv_heads=8, hidden=14336),
}


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, computed in fp32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).type_as(x) * self.weight


def rotation(context: int, head_width: int, base: float = 10_000.0) -> Tensor:
    """Cosines and sines of RoPE, [2, context, head_width / 2]."""
    frequencies = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
    angles = torch.outer(torch.arange(context, dtype=torch.float64), frequencies)
    return torch.stack([angles.cos(), angles.sin()]).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn each pair (i, i + half) of x [n, heads, t, head_width] by its position's angle."""
    cos, sin = table[0, : x.shape[2]].to(x.dtype), table[1, : x.shape[2]].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Attention(nn.Module):
    """Causal self-attention [n, t, width] -> [n, t, width]; how many heads is read from the weights' shapes, so that they may be split."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.head_width = shape.width // shape.heads
        self.query = nn.Linear(shape.width, shape.heads * self.head_width, bias=False)
        self.key = nn.Linear(shape.width, shape.kv_heads * self.head_width, bias=False)
        self.value = nn.Linear(shape.width, shape.kv_heads * self.head_width, bias=False)
        self.output = nn.Linear(shape.heads * self.head_width, shape.width, bias=False)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        count, length, _ = x.shape
        q, k, v = (layer(x).view(count, length, -1, self.head_width).transpose(1, 2) for layer in (self.query, self.key, self.value))
        q, k = rotate(q, table), rotate(k, table)
        if k.shape[1] != q.shape[1]:
            k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.output(mixed.transpose(1, 2).reshape(count, length, -1))
        return result


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.hidden, bias=False)
        self.up = nn.Linear(shape.width, shape.hidden, bias=False)
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return result


class Block(nn.Module):
    """Attention, then feed-forward, each normalised before and added to what came in."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(shape.width)
        self.attention = Attention(shape)
        self.feed_norm = RMSNorm(shape.width)
        self.feed = FeedForward(shape)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table)
        result: Tensor = x + self.feed(self.feed_norm(x))
        return result


class Transformer(nn.Module):
    """Tokens [n, t] -> logits [n, t, vocabulary]; without embedding it takes activations [n, t, width], without head it returns them."""

    table: Tensor

    def __init__(self, shape: Shape, vocabulary: int, context: int) -> None:
        super().__init__()
        self.shape = shape
        self.embedding: nn.Embedding | None = nn.Embedding(vocabulary, shape.width)
        self.blocks = nn.ModuleDict({str(index): Block(shape) for index in range(shape.layers)})
        self.norm: RMSNorm | None = RMSNorm(shape.width)
        self.head: nn.Linear | None = nn.Linear(shape.width, vocabulary, bias=False)
        self.register_buffer("table", rotation(context, shape.width // shape.heads), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:  # GPT-2's initialisation: what feeds the residual stream starts smaller with depth
                deep = name.endswith(("attention.output.weight", "feed.down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.layers) if deep else 0.02)

    def forward(self, x: Tensor) -> Tensor:
        if self.embedding is not None:
            x = self.embedding(x)
        for block in self.blocks.values():
            x = block(x, self.table)
        if self.norm is not None:
            x = self.norm(x)
        result: Tensor = self.head(x) if self.head is not None else x
        return result


def flops_per_token(shape: Shape, vocabulary: int, context: int) -> float:
    """Floating-point operations of training on one token: 6 per weight of a matrix, and 6 * width * context per layer for causal attention
    (scores and mixing, two operations each, backward twice forward, half of the square masked). The embedding's look-up costs none.
    """
    head = shape.width // shape.heads
    attention = shape.width * head * (2 * shape.heads + 2 * shape.kv_heads)
    weights = shape.layers * (attention + 3 * shape.width * shape.hidden) + shape.width * vocabulary
    return 6.0 * weights + 6.0 * shape.layers * shape.width * context
