"""Texts in, classes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lepton_trainer.train.data.words import Encoder
from lepton_trainer.train.serving.adapters import Refused, classified, device_of, shown


class Texts:
    """Instances are texts, alone or as {"text": ...}."""

    limit = 64
    expects = 'a text, or {"text": "..."}'

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        self.encoder = Encoder.from_json(preprocessing)

    def read(self, instance: Any) -> NDArray[np.int32]:
        text = instance["text"] if isinstance(instance, dict) and instance.keys() == {"text"} else instance
        if not isinstance(text, str):
            raise Refused(f"found {shown(instance)}")
        if not text.strip():
            raise Refused("found an empty text")
        return self.encoder.encode(text)

    def answer(self, model: nn.Module, items: Sequence[NDArray[np.int32]]) -> list[dict[str, Any]]:
        return classified(model(torch.from_numpy(self.encoder.batch(items)).to(device_of(model))), self.encoder.labels)

    def example(self) -> Any:
        return "a text"
