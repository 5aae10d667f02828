"""Between a request's JSON and the model: one adapter for each task, made from what was exported with the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

from torch import nn


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


_ROOMS = {"image-classification": "images.Images", "language-modeling": "completions.Completions"}


def adapter(task: str, preprocessing: Mapping[str, Any]) -> Adapter:
    """The adapter of a task by its name.

    Raises:
        KeyError: there is none.
    """
    room, name = _ROOMS[task].split(".")
    make: Callable[[Mapping[str, Any]], Adapter] = getattr(import_module(f"lepton_trainer.train.serving.{room}"), name)
    return make(preprocessing)


def shown(value: Any) -> str:
    """What was found, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
