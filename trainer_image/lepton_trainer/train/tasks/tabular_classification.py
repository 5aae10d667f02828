"""Which class a row of a table belongs to."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lepton_trainer.train import histograms, models
from lepton_trainer.train.data import tabular
from lepton_trainer.train.data.order import Int64s, keyed, uniform
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.tabular_classification import TabularClassification

_STREAM = 0x5A9  # keeps the numbers of the augmentation apart from the order's, which come from the same seed


class TabularClassificationTask:
    """A residual MLP; the figure of merit is the area under the ROC curve on the test rows, of more than two classes the mean over them.

    Where there are two classes, a part of the training rows is held out with the test rows: on it each evaluation chooses the threshold
    of least cost, and all figures are those of the test rows with it.
    """

    metric = "roc_auc"
    mode: Literal["max", "min"] = "max"
    units = 1
    tokens = 0

    def __init__(self, config: TabularClassification) -> None:
        self.config = config
        decision = config.decision
        self.data = data = tabular.load(config.data, decision.validation_fraction)
        if data.positive is None and decision.false_alarm != decision.miss:
            raise UserError(
                f"costs decide between two classes, and there are {len(data.classes)}", where="decision", instead="Leave it out"
            )
        self.size, self.test_size = len(data.train_rows), len(data.held_rows)
        self.bins = 1 << (14 if len(data.classes) <= 8 else 12)
        self.scored = [data.positive] if data.positive is not None else list(range(len(data.classes)))
        self.sums = 2 + 2 * self.bins * (len(self.scored) + (data.positive is not None))
        counts = np.bincount(data.train_classes, minlength=len(data.classes))
        weights = len(data.train_classes) / np.maximum(counts, 1) / len(data.classes)
        self.weights = torch.tensor(weights if config.class_weights == "balanced" else np.ones(len(weights)), dtype=torch.float32)
        self.identity: dict[str, Any] = {"model": config.model.model_dump(), "classes": data.classes, "data": data.key}
        self.preprocessing: dict[str, Any] = {"encoder": data.encoder.to_json(), "labels": data.classes}
        if data.positive is not None:
            threshold = decision.false_alarm / (decision.false_alarm + decision.miss)
            self.preprocessing |= {"positive": data.positive, "threshold": threshold}
        self.description: dict[str, Any] = {"kind": "tabular", **config.model.model_dump()}
        self.flops = 6.0 * sum(module.weight.numel() for module in self.model().modules() if isinstance(module, nn.Linear))
        self.notes = [*data.notes, *(f"{count} rows left out: {reason}" for reason, count in data.rejected.items())]

    def model(self) -> nn.Module:
        return models.build(self.description, self.preprocessing)

    def batch(self, epochs: Int64s, indices: Int64s) -> tuple[Tensor, Tensor]:
        rows = np.array(self.data.train_rows[indices])
        if self.config.data.swap and len(rows):
            self._swap(rows, epochs, indices)
        return torch.from_numpy(rows), torch.from_numpy(self.data.train_classes[indices])

    def _swap(self, rows: Any, epochs: Int64s, indices: Int64s) -> None:
        """Replace some cells by those of the same column in another training row, by numbers that depend on (seed, epoch, row) alone.
        A number's mark stays with it, whose column it shares."""
        numbers = self.data.encoder.numbers
        marked = [place for place, column in enumerate(numbers) if column.marked]
        source = [*range(len(numbers)), *marked, *range(len(numbers) + len(marked), rows.shape[1])]
        cells = np.array(source, dtype=np.int64)[None, :]
        seed = self.config.training.seed
        chance = uniform(keyed(seed, np.int64(_STREAM).reshape(1), epochs[:, None], indices[:, None], cells))
        others = (chance / self.config.data.swap * self.size).astype(np.int64)
        place = np.nonzero(chance < self.config.data.swap)
        rows[place] = self.data.train_rows[others[place], place[1]]

    def test_batch(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Classes of validation rows come raised by the number of classes: that is how `score` tells them from test rows."""
        raised = (np.arange(first, last) < self.data.validation) * len(self.data.classes)
        classes = self.data.held_classes[first:last] + raised
        return torch.from_numpy(np.array(self.data.held_rows[first:last])), torch.from_numpy(classes)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        logs = F.log_softmax(outputs.float(), dim=1).gather(1, targets[:, None])[:, 0]
        weights = self.weights.to(outputs.device)[targets]
        if self.config.focal_gamma:
            weights = weights * (1.0 - logs.exp()) ** self.config.focal_gamma
        return -(weights * logs).sum()

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        outputs = outputs.float()
        classes = outputs.shape[1]
        tested = targets < classes
        logits, kinds = outputs[tested], targets[tested]
        parts = [F.cross_entropy(logits, kinds, reduction="sum").double().view(1), (logits.argmax(dim=1) == kinds).sum().double().view(1)]
        parts += [histograms.counts(log_odds(logits, kind), kinds == kind, self.bins) for kind in self.scored]
        if self.data.positive is not None:
            chosen = log_odds(outputs[~tested], self.data.positive)
            parts.append(histograms.counts(chosen, targets[~tested] == classes + self.data.positive, self.bins))
        return torch.cat(parts)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        tested = self.test_size - self.data.validation
        counted = np.array(sums[2:]).reshape(-1, 2, self.bins)
        rows = [kind for kind in counted[: len(self.scored)] if kind[0].sum() and kind[1].sum()]
        figures = {
            "test_loss": sums[0] / tested,
            "roc_auc": float(np.mean([histograms.roc_auc(*kind) for kind in rows])),
            "average_precision": float(np.mean([histograms.average_precision(*kind) for kind in rows])),
            "accuracy": sums[1] / tested,
        }
        return figures if self.data.positive is None else figures | self._decide(counted[0], counted[1])

    def _decide(self, tested: Any, validation: Any) -> dict[str, float]:
        """The threshold, kept for whoever uses the model, and the test rows' figures with it."""
        decision = self.config.decision
        edge = histograms.cheapest(validation[0], validation[1], decision.false_alarm, decision.miss)
        self.preprocessing["threshold"] = histograms.probability(edge, self.bins)
        (negative, positive) = tested
        false_alarms, missed = negative[edge:].sum(), positive[:edge].sum()
        found, total = positive[edge:].sum(), negative.sum() + positive.sum()
        return {
            "accuracy": float(1.0 - (false_alarms + missed) / total),
            "recall": float(found / positive.sum()),
            "precision": float(found / (found + false_alarms)) if found else 0.0,
            "cost": float((false_alarms * decision.false_alarm + missed * decision.miss) / total),
            "threshold": self.preprocessing["threshold"],
        }


def log_odds(logits: Tensor, kind: int) -> Tensor:
    """Of one class against all others, from the logits [n, classes] -> [n]."""
    others = torch.cat([logits[:, :kind], logits[:, kind + 1 :]], dim=1)
    return logits[:, kind] - others.logsumexp(dim=1)
