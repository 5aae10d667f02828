"""What a user will like: the rating of an item, or which items come first."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lepton_trainer.train import models
from lepton_trainer.train.data import ratings
from lepton_trainer.train.data.order import Int64s, keyed
from lepton_trainer.train.data.ratings import TOP
from lepton_trainer.train.settings.recommendation import Recommendation

_STREAM = 0x4E6  # keeps the draw of negatives apart from the order's, which comes from the same seed
_TRIES = 4


class RecommendationTask:
    """Factors of users and items. The figure of merit is the RMSE of held-out ratings, or NDCG@10 of each user's last item."""

    units = 1
    tokens = 0

    def __init__(self, config: Recommendation) -> None:
        self.config = config
        self.ranks = config.objective == "ranking"
        self.data = data = ratings.load(config.data, config.objective, config.model.kind == "dlrm")
        self.metric = "ndcg_at_10" if self.ranks else "rmse"
        self.mode: Literal["max", "min"] = "max" if self.ranks else "min"
        self.sums = 3
        self.size, self.test_size = len(data.train), len(data.held)
        self.taken = np.unique(data.train[:, 0] * self._items + data.train[:, 1])
        self.identity: dict[str, Any] = {"model": config.model.model_dump(), "objective": config.objective, "data": data.key}
        self.preprocessing: dict[str, Any] = {"encoder": data.encoder.to_json(), "objective": config.objective}
        self.description: dict[str, Any] = config.model.model_dump()
        scored = 1 + config.negatives if self.ranks else 1
        matrices = sum(module.weight.numel() for module in self.model().modules() if isinstance(module, nn.Linear))
        self.flops = 6.0 * scored * (matrices + config.model.factors)
        self.notes = [*data.notes, *(f"{count} rows left out: {reason}" for reason, count in data.rejected.items())]

    @property
    def _items(self) -> int:
        return len(self.data.encoder.items) + 1

    def model(self) -> nn.Module:
        return models.build(self.description, self.preprocessing)

    def batch(self, epochs: Int64s, indices: Int64s) -> tuple[Tensor, Tensor]:
        pairs = np.array(self.data.train[indices])
        if not self.ranks:
            return torch.from_numpy(pairs), torch.from_numpy(np.array(self.data.train_ratings[indices]))
        rows = np.concatenate([pairs, self._negatives(pairs[:, :1], epochs, indices)], axis=1)
        return torch.from_numpy(rows), torch.zeros(len(rows), dtype=torch.long)

    def _negatives(self, users: Int64s, epochs: Int64s, indices: Int64s) -> Int64s:
        """Items for each user [n, 1] that it did not take, drawn by (seed, epoch, sample) alone; of a user that took nearly all
        items, some may be among those."""
        drawn = np.zeros((len(users), self.config.negatives), dtype=np.int64)
        missing = np.ones(drawn.shape, dtype=np.bool_)
        columns = np.arange(self.config.negatives)[None, :]
        for turn in range(_TRIES):
            seed = self.config.training.seed
            bits = keyed(seed, np.int64(_STREAM).reshape(1), epochs[:, None], indices[:, None], columns, np.int64(turn).reshape(1))
            tried = 1 + (bits % np.uint64(self._items - 1)).astype(np.int64)
            drawn = np.where(missing, tried, drawn)
            pairs = users * self._items + drawn
            missing = self.taken[np.searchsorted(self.taken, pairs).clip(max=len(self.taken) - 1)] == pairs
            if not missing.any():
                break
        return drawn

    def test_batch(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        rows = torch.from_numpy(np.array(self.data.held[first:last]))
        if self.ranks:
            return rows, torch.zeros(len(rows), dtype=torch.long)
        return rows, torch.from_numpy(np.array(self.data.held_ratings[first:last]))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.ranks:
            return F.cross_entropy(outputs.float(), targets, reduction="sum")
        return (outputs[:, 0].float() - targets).square().sum()

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = self.loss(outputs, targets).double()
        if self.ranks:
            rank = (outputs[:, 1:] >= outputs[:, :1]).sum(dim=1)
            hit = (rank < TOP).double()
            return torch.stack([loss, hit.sum(), (hit / torch.log2(rank.double() + 2.0)).sum()])
        error = outputs[:, 0].double().clamp(self.data.encoder.low, self.data.encoder.high) - targets.double()
        return torch.stack([loss, error.square().sum(), error.abs().sum()])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        loss, first, second = (total / self.test_size for total in sums)
        if self.ranks:
            return {"test_loss": loss, "hit_rate_at_10": first, "ndcg_at_10": second}
        return {"test_loss": loss, "rmse": math.sqrt(first), "mae": second}
