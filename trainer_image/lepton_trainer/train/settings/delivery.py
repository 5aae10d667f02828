"""What stands beside the task: what becomes of the trained model, and what a further round changes.

    imageClassification: {...}
    optimise: {methods: [prune]}
    export: {path: s3://models/digits}
    round: {number: 2, learningRate: 0.3, warmStart: /checkpoints/digits/round-1}

In a Lepton job the operator writes these from `spec.optimise`, `spec.export` and `spec.evaluation`; a file may hold them too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError

from lepton_trainer.train.settings.section import Section

Method = Literal["quantise", "prune", "distil"]
Format = Literal["safetensors", "torchExport", "onnx"]
Model = TypeVar("Model", bound=BaseModel)


class Optimise(Section):
    """Make the model smaller or faster, and keep what costs little."""

    methods: Annotated[list[Method], Field(min_length=1, max_length=3)] = Field(
        default=["quantise"], description="In the order distil, prune, quantise, each on what the kept ones before it left."
    )
    tolerance: Annotated[float, Field(ge=0, le=1_000_000)] = Field(
        default=0.01, description="Of the task's metric, absolute: a method that loses more of it is not kept."
    )


class Export(Section):
    """Write the trained model to where it can be served from."""

    path: Annotated[str, Field(max_length=1024)] = Field(
        default="", description="A directory or s3://bucket/prefix; empty means model below the checkpoints."
    )
    formats: Annotated[list[Format], Field(min_length=1, max_length=3)] = Field(
        default=["safetensors"], description="safetensors, which the server reads, is always written; the others beside it."
    )
    licence: Annotated[str, Field(max_length=256)] = Field(default="unspecified", description="Of the model, for its card.")


class Round(Section):
    """What this round changes of the task's settings."""

    number: Annotated[int, Field(ge=1, le=1000)] = Field(default=1, description="Counted from 1.")
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = Field(default=1.0, description="Factor of the learning rates.")
    epochs: Annotated[float, Field(gt=0, le=1000)] = Field(default=1.0, description="Factor of epochs and steps.")
    width: Annotated[float, Field(gt=0, le=64)] = Field(
        default=1.0, description="Factor of the model's width; where it has presets, the next one."
    )
    warm_start: Annotated[str, Field(max_length=1024)] = Field(
        default="", description="Directory of checkpoints whose best weights the model starts from, as far as they fit."
    )


RESERVED: dict[str, type[Section]] = {"optimise": Optimise, "export": Export, "round": Round}


@dataclass(frozen=True, slots=True)
class Delivery:
    """The reserved keys that were written; `export` is there whenever something has to be exported."""

    optimise: Optimise | None = None
    export: Export | None = None
    round: Round | None = None


NOTHING = Delivery()
WIDTHS = {"width", "factors"}
"""What the tasks' models call their width."""


def applied(task: Model, change: Round) -> Model:
    """The task's settings with a round's factors applied, each result within its setting's bounds."""
    document = task.model_dump(by_alias=True)
    optimizer, training = document["optimizer"], document["training"]
    for name in ("learningRate", "muonLearningRate"):
        if name in optimizer:
            optimizer[name] = min(optimizer[name] * change.learning_rate, 100.0)
    training["epochs"] = min(training["epochs"] * change.epochs, 100_000.0)
    if training["steps"]:
        training["steps"] = min(max(round(training["steps"] * change.epochs), 1), 1_000_000_000)
    if change.width != 1.0:
        document["model"] |= _widened(type(getattr(task, "model")), document["model"], change.width)  # noqa: B009
    folder = f"round-{change.number}"  # a path of the user's own is told apart as the operator's are
    for section, name in (("checkpoint", "path"), ("output", "directory")):
        if document[section][name]:
            document[section][name] = f"{document[section][name].rstrip('/')}/{folder}"
    return type(task).model_validate(document)


def narrower(task: Model, factor: float) -> Model | None:
    """The same task with a smaller model; None where there is no smaller one."""
    document = task.model_dump(by_alias=True)
    changed = _widened(type(getattr(task, "model")), document["model"], factor)  # noqa: B009
    if not changed or all(document["model"][name] == value for name, value in changed.items()):
        return None
    document["model"] |= changed
    try:
        return type(task).model_validate(document)
    except ValidationError:  # a rule of the task says that this is too small
        return None


def _widened(section: type[BaseModel], values: dict[str, Any], factor: float) -> dict[str, Any]:
    """What changes of a model's settings: its widths, rounded to a multiple of four within their bounds, else its preset."""
    changed: dict[str, Any] = {}
    for name in WIDTHS & section.model_fields.keys():
        limits = section.model_fields[name].metadata
        low = next((limit.ge for limit in limits if hasattr(limit, "ge")), 1)
        high = next((limit.le for limit in limits if hasattr(limit, "le")), 1 << 20)
        changed[name] = int(min(max(round(values[name] * factor / 4) * 4, low), high))
    if not changed and "preset" in section.model_fields:
        names = sorted(get_args(section.model_fields["preset"].annotation), key=_size)
        place = names.index(values["preset"]) + (1 if factor > 1 else -1)
        changed["preset"] = names[min(max(place, 0), len(names) - 1)]
    return changed


def _size(preset: str) -> float:
    """1.5B -> 1.5e9."""
    found = re.fullmatch(r"([\d.]+)([KMB])", preset)
    return float(found[1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[found[2]] if found else 0.0
