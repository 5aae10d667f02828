"""A residual MLP over embeddings of a table's columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lepton_trainer.train.data.encoding import Encoder

_FAR = 6.0
"""Standard deviations beyond which a number counts as so far: one absurd value decides nothing."""


class NumberEmbedding(nn.Module):
    """Numbers [n, columns] -> [n, columns, size]: piecewise-linear encoding, then a layer of each column's own (Gorishniy et al., 2022).

    Args:
        edges: of each column's bins, increasing, two at least.
    """

    left: Tensor
    scale: Tensor

    def __init__(self, edges: Sequence[Sequence[float]], size: int) -> None:
        super().__init__()
        bins = max((len(column) - 1 for column in edges), default=0)
        left, scale = torch.zeros(len(edges), bins), torch.zeros(len(edges), bins)  # a bin that a column lacks gives 0
        for place, column in enumerate(edges):
            points = torch.tensor(column)
            left[place, : len(column) - 1] = points[:-1]
            scale[place, : len(column) - 1] = 1.0 / (points[1:] - points[:-1])
        # Made from the data's statistics and not learnt: no state to keep or to average.
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("scale", scale, persistent=False)
        used = torch.tensor([max(len(column) - 1, 1) for column in edges]).view(-1, 1, 1)
        self.weight = nn.Parameter(torch.randn(len(edges), bins, size) / used.sqrt())
        self.bias = nn.Parameter(torch.zeros(len(edges), size))

    def forward(self, numbers: Tensor) -> Tensor:
        filled = ((numbers.unsqueeze(-1) - self.left) * self.scale).clamp(0.0, 1.0)
        return F.relu(torch.einsum("ncb,cbs->ncs", filled, self.weight) + self.bias)


class Block(nn.Module):
    """[n, width] -> [n, width], added to what came in."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.down(F.relu(self.up(self.norm(x))))
        return x + inner


class TabularNet(nn.Module):
    """Rows [n, numbers + marks + categories] -> logits [n, classes].

    A row holds standardised numbers, then marks of 0 or 1, then the categories' places in their lists, as whole numbers.
    """

    offsets: Tensor

    def __init__(
        self,
        edges: Sequence[Sequence[float]],
        marks: int,
        categories: Sequence[int],
        classes: int,
        width: int,
        blocks: int,
        embedding: int,
    ) -> None:
        super().__init__()
        self.numbers, self.marks = len(edges), marks
        self.number_embedding = NumberEmbedding(edges, embedding) if edges else None
        self.embedding_categories = nn.Embedding(sum(categories), embedding) if categories else None
        starts = torch.tensor([sum(categories[:place]) for place in range(len(categories))], dtype=torch.long)
        self.register_buffer("offsets", starts, persistent=False)
        self.stem = nn.Linear((len(edges) + len(categories)) * embedding + len(edges) + marks, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, rows: Tensor) -> Tensor:
        split = self.numbers + self.marks
        numbers = rows[:, : self.numbers].clamp(-_FAR, _FAR)
        parts = [numbers, rows[:, self.numbers : split]]
        if self.number_embedding is not None:
            parts.append(self.number_embedding(numbers).flatten(1))
        if self.embedding_categories is not None:
            parts.append(self.embedding_categories(rows[:, split:].long() + self.offsets).flatten(1))
        x = self.stem(torch.cat(parts, dim=1))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(F.relu(self.norm(x)))
        return logits


def fitting(preprocessing: Mapping[str, Any], width: int, blocks: int, embedding: int) -> TabularNet:
    """The network for the rows that the encoder of `preprocessing` makes, and its classes."""
    encoder = Encoder.from_json(preprocessing["encoder"])
    sizes = [len(column.values) + 2 for column in encoder.categories]
    edges = [column.edges for column in encoder.numbers]
    return TabularNet(edges, encoder.marks, sizes, len(preprocessing["labels"]), width, blocks, embedding)
