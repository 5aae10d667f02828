"""Rows of a table in, classes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lepton_trainer.train.data.encoding import Encoder, is_missing, number
from lepton_trainer.train.serving.adapters import Refused, classified, device_of, shown


class Rows:
    """Instances are {"column": value, ...}; a column that is left out, null or empty is missing, as it may be in training."""

    limit = 256

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        self.encoder = Encoder.from_json(preprocessing["encoder"])
        self.labels: list[str] = preprocessing["labels"]
        self.positive: int | None = preprocessing.get("positive")
        self.threshold = float(preprocessing.get("threshold", 0.5))
        self.numbers = {column.name for column in self.encoder.numbers}
        self.names = set(self.encoder.names)
        told = [f"{name} (number)" if name in self.numbers else f"{name} (text)" for name in self.encoder.names]
        self.expects = f'{{"column": value, ...}} with any of {", ".join(told[:30])}{", ..." if len(told) > 30 else ""}'

    def read(self, instance: Any) -> dict[str, Any]:
        if not isinstance(instance, dict):
            raise Refused(f"found {shown(instance)}")
        unknown = sorted(instance.keys() - self.names)
        if unknown:
            raise Refused(f"found the column {shown(unknown[0])}, which the model does not know")
        # A row that says of each column that it is empty is one, as in evaluation; a request without any value is a mistake.
        if instance.keys() != self.names and all(is_missing(value) for value in instance.values()):
            raise Refused("found no value at all")
        for name, value in instance.items():
            if isinstance(value, dict | list):
                raise Refused(f"found {shown(value)} in column {name}")
            # A number that no number holds comes out as NaN; only a missing one may.
            if name in self.numbers and not is_missing(value) and number(value) != number(value):
                raise Refused(f"found {shown(value)} in column {name}, which holds numbers")
        return instance

    def answer(self, model: nn.Module, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        columns = {name: [item.get(name) for item in items] for name in self.encoder.names}
        outputs = model(torch.from_numpy(self.encoder.encode(columns, len(items))).to(device_of(model)))
        answers = classified(outputs, self.labels)
        if self.positive is not None:  # two classes: the threshold of least cost decides, not the larger probability
            for answer in answers:
                chance = answer["probabilities"][self.positive]
                index = self.positive if chance >= self.threshold else 1 - self.positive
                answer |= {"label": self.labels[index], "index": index, "probability": answer["probabilities"][index]}
        return answers

    def example(self) -> Any:
        numbers = {column.name: column.mean for column in self.encoder.numbers}
        return numbers | {column.name: column.values[0] if column.values else "other" for column in self.encoder.categories}
