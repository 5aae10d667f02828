"""The next token of a text."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lepton_trainer.train import models
from lepton_trainer.train.data import text
from lepton_trainer.train.data.order import Int64s
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.models.transformer import PRESETS, flops_per_token
from lepton_trainer.train.settings.language_modeling import LanguageModeling


class LanguageModelingTask:
    """A decoder transformer; the figure of merit is bits per byte of the held-out text, per token where bytes are unknown."""

    sums = 2
    mode: Literal["max", "min"] = "min"

    def __init__(self, config: LanguageModeling) -> None:
        self.config = config
        context = config.model.context
        self.data = data = text.load(config.data, context)
        self.shape = PRESETS[config.model.preset]
        self.size, self.test_size = len(data.train), len(data.test)
        self.units = self.tokens = context
        self.flops = flops_per_token(self.shape, data.vocabulary, context) * context
        self.lengths = None if data.token_bytes is None else torch.from_numpy(data.token_bytes.astype(np.int64))
        self.metric = "bits_per_token" if self.lengths is None else "bits_per_byte"
        self.identity: dict[str, Any] = {"model": config.model.model_dump(), "vocabulary": data.vocabulary, "data": data.key}
        self.preprocessing = text.Encoder(data.tokenizer, data.vocabulary, context).to_json()
        self.description: dict[str, Any] = {
            "kind": "transformer",
            "shape": asdict(self.shape),
            "vocabulary": data.vocabulary,
            "context": context,
        }
        self.notes = [f"{count} files left out: {reason}" for reason, count in data.rejected.items()]

    def model(self) -> nn.Module:
        return models.build(self.description, self.preprocessing)

    def batch(self, epochs: Int64s, indices: Int64s) -> tuple[Tensor, Tensor]:
        return self._windows(self.data.train, indices)

    def test_batch(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        return self._windows(self.data.test, np.arange(first, last))

    def _windows(self, windows: text.Windows, indices: Int64s) -> tuple[Tensor, Tensor]:
        rows = windows[indices]
        if rows.size and rows.max() >= self.data.vocabulary:
            raise UserError(
                f"holds token {rows.max()}, but data.vocabulary is {self.data.vocabulary}",
                where=", ".join(windows.names),
                instead="Write the vocabulary that the tokens were made with",
            )
        tokens = torch.from_numpy(rows)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.flatten(0, 1).float(), targets.flatten(), reduction="sum")

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        bytes_seen = targets.numel() if self.lengths is None else self.lengths.to(targets.device)[targets].sum()
        return torch.stack([self.loss(outputs, targets).double(), torch.as_tensor(bytes_seen, device=outputs.device).double()])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        return {"test_loss": sums[0] / (self.test_size * self.units), self.metric: sums[0] / math.log(2) / max(sums[1], 1.0)}
