"""Which class a text belongs to."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lepton_trainer.train import models
from lepton_trainer.train.data import documents
from lepton_trainer.train.data.order import Int64s, keyed, uniform
from lepton_trainer.train.data.words import PADDING, UNKNOWN, Encoder
from lepton_trainer.train.settings.text_classification import TextClassification, TextModel

_STREAM = 0x3D7  # keeps the choice of hidden words apart from the order's, which comes from the same seed


class TextClassificationTask:
    """The figure of merit is the accuracy on the held-out texts, 0 to 1; beside it the F1 score averaged over the classes."""

    metric = "accuracy"
    mode: Literal["max", "min"] = "max"
    units = 1

    def __init__(self, config: TextClassification) -> None:
        self.config = config
        self.data = data = documents.load(config.data, config.model)
        self.labels = data.encoder.labels
        self.size, self.test_size = len(data.train), len(data.test)
        self.sums = 1 + 3 * len(self.labels)
        self.preprocessing: dict[str, Any] = data.encoder.to_json()
        self.description: dict[str, Any] = _description(config.model, data.encoder)
        length = data.train.values.shape[-1] / self.size
        self.tokens = round(length) if data.encoder.ordered else 0
        self.identity: dict[str, Any] = {"model": config.model.model_dump(), "labels": self.labels, "data": data.key, "loss": config.loss}
        self.flops = 6.0 * length * _touched(self.model())
        self.notes = [*data.notes, *(f"{count} texts left out: {reason}" for reason, count in data.rejected.items())]
        missing = sorted(set(range(len(self.labels))) - set(np.unique(data.test_classes).tolist()))
        if missing:
            self.notes.append(f"no test text of class {', '.join(self.labels[i] for i in missing)}")

    def model(self) -> nn.Module:
        return models.build(self.description, self.preprocessing)

    def batch(self, epochs: Int64s, indices: Int64s) -> tuple[Tensor, Tensor]:
        inputs = self.data.encoder.batch([self.data.train[index] for index in indices])
        if self.config.model.word_dropout and len(indices):
            self._hide(inputs, epochs, indices)
        return torch.from_numpy(inputs), torch.from_numpy(self.data.train_classes[indices])

    def _hide(self, inputs: Int64s, epochs: Int64s, indices: Int64s) -> None:
        """Hide words, or leave n-grams out, by numbers that depend on (seed, epoch, text, place) alone."""
        places = np.arange(inputs.shape[-1])[None, :]
        chance = uniform(keyed(self.config.training.seed, np.int64(_STREAM).reshape(1), epochs[:, None], indices[:, None], places))
        hidden = chance < self.config.model.word_dropout
        if self.data.encoder.ordered:
            inputs[hidden & (inputs != PADDING)] = UNKNOWN
        else:
            inputs[:, 1][hidden] = 0

    def test_batch(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        inputs = self.data.encoder.batch([self.data.test[index] for index in range(first, last)])
        return torch.from_numpy(inputs), torch.from_numpy(np.array(self.data.test_classes[first:last]))

    def excerpt(self, index: int) -> str:
        """The beginning of a held-out text."""
        return bytes(self.data.excerpts[index]).decode()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(outputs, targets, self.config.label_smoothing)

    def _loss(self, outputs: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        outputs = outputs.float()
        if self.config.loss == "hinge":
            sides = 2.0 * F.one_hot(targets, outputs.shape[1]) - 1.0
            return F.relu(1.0 - sides * outputs).square().sum()
        return F.cross_entropy(outputs, targets, reduction="sum", label_smoothing=smoothing)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss, then per class: rightly, wrongly and not found."""
        classes = len(self.labels)
        found = outputs.argmax(dim=1)
        right = torch.bincount(targets[found == targets], minlength=classes)
        wrong = torch.bincount(found, minlength=classes) - right
        missed = torch.bincount(targets, minlength=classes) - right
        return torch.cat([self._loss(outputs, targets, 0.0).double().view(1), right.double(), wrong.double(), missed.double()])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        right, wrong, missed = np.array(sums[1:]).reshape(3, -1)
        seen = 2 * right + wrong + missed
        scores = 2 * right[seen > 0] / seen[seen > 0]
        return {"test_loss": sums[0] / self.test_size, "accuracy": float(right.sum() / self.test_size), "macro_f1": float(scores.mean())}


def _description(shape: TextModel, encoder: Encoder) -> dict[str, Any]:
    """The model for what `encoder` makes of texts."""
    sizes = {"classes": len(encoder.labels), "width": shape.width}
    if shape.kind == "ngrams":
        return {"kind": "ngrams", "size": encoder.size, **sizes}
    sizes |= {"vocabulary": encoder.size, "layers": shape.layers}
    if shape.kind == "rnn":
        return {"kind": "recurrent", "cell": shape.cell, **sizes}
    return {"kind": "textEncoder", "max_length": shape.max_length, **sizes}


def _touched(model: nn.Module) -> float:
    """Weights that one word is multiplied with: a row of what is looked up, and every other matrix."""
    return float(
        sum(p.shape[1] if name in ("weight", "embedding.weight") else p.numel() for name, p in model.named_parameters() if p.dim() == 2)
    )
