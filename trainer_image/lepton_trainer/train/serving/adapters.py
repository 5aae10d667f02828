"""Between a request's JSON and the model: one adapter for each task, made from what was exported with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Refused(Exception):
    """An instance is not what the model takes; the sentence says what was expected and what was found."""


class Adapter(Protocol):
    """One task's way in and out. `read` is cheap and thread-safe; `answer` runs in the one thread that computes."""

    limit: int
    """Instances that are computed at once."""
    expects: str
    """What an instance is, in one sentence."""

    def read(self, instance: Any) -> Any:
        """An instance of the request, checked.

        Raises:
            Refused: it is something else.
        """

    def answer(self, model: nn.Module, items: Sequence[Any]) -> list[dict[str, Any]]:
        """A prediction for each item that `read` gave, at most `limit` of them."""

    def example(self) -> Any:
        """An instance that `read` takes."""


_ROOMS = {
    "image-classification": "images.Images",
    "language-modeling": "completions.Completions",
    "tabular-classification": "rows.Rows",
    "text-classification": "texts.Texts",
    "recommendation": "recommendations.Recommendations",
}


def adapter(task: str, preprocessing: Mapping[str, Any]) -> Adapter:
    """The adapter of a task by its name.

    Raises:
        KeyError: there is none.
    """
    room, name = _ROOMS[task].split(".")
    make: Callable[[Mapping[str, Any]], Adapter] = getattr(import_module(f"lepton_trainer.train.serving.{room}"), name)
    return make(preprocessing)


def classified(outputs: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """The answers to logits [n, classes]: the likeliest class, and how likely all are."""
    chances = outputs.float().softmax(dim=1).cpu()
    return [
        {"label": labels[index], "index": index, "probability": row[index], "probabilities": row}
        for index, row in zip(outputs.argmax(dim=1).tolist(), chances.tolist(), strict=True)
    ]


def device_of(model: nn.Module) -> torch.device:
    """Where its tensors lie."""
    first: Tensor = next(iter(model.state_dict().values()))
    return first.device


def shown(value: Any) -> str:
    """What was found, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
