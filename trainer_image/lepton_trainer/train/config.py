"""The configuration read: one task and its settings, from a file or from the resource's `trainer.builtin`, whose shape is the same.

    imageClassification: {data: {source: digits}, training: {epochs: 40}}

Beside it may stand what `settings/delivery.py` has. Exactly one task per file, camelCase keys, unknown keys and wrong types refused. Every
field of `settings` is read by the code: there is no option without effect. A value that is not wanted is left out, never null.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.delivery import RESERVED, Delivery, Export, applied
from lepton_trainer.train.settings.image_classification import ImageClassification
from lepton_trainer.train.settings.language_modeling import LanguageModeling
from lepton_trainer.train.settings.recommendation import Recommendation
from lepton_trainer.train.settings.tabular_classification import TabularClassification
from lepton_trainer.train.settings.text_classification import TextClassification

TaskConfig = ImageClassification | LanguageModeling | TabularClassification | Recommendation | TextClassification
TASKS: dict[str, type[TaskConfig]] = {
    "imageClassification": ImageClassification,
    "languageModeling": LanguageModeling,
    "tabularClassification": TabularClassification,
    "recommendation": Recommendation,
    "textClassification": TextClassification,
}


def name_of(config: TaskConfig) -> str:
    """The task's name as people write it: `image-classification`."""
    return next(re.sub("[A-Z]", lambda letter: f"-{letter[0].lower()}", name) for name, model in TASKS.items() if type(config) is model)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a run is to do: a task, its settings as this round changes them, and what becomes of the model."""

    task: TaskConfig
    delivery: Delivery


def parse(document: object, where: str = "the configuration") -> TaskConfig:
    """The one task of `document`, validated; see `assignment`."""
    return assignment(document, where).task


def assignment(document: object, where: str = "the configuration") -> Assignment:
    """Everything that `document` says, validated, and the round's factors applied.

    Raises:
        UserError: naming each wrong key, and what is allowed there.
    """
    named = [str(key) for key in document if key not in RESERVED] if isinstance(document, dict) else []
    if not isinstance(document, dict) or len(named) != 1:
        raise UserError(
            f"exactly one task is needed, found {', '.join(named) or 'none'}",
            where=where,
            instead=f"Write one of {', '.join(TASKS)} with its settings below it",
        )
    lines: list[str] = []
    found: dict[str, Any] = {}
    for name, settings in document.items():
        model = TASKS.get(name) or RESERVED.get(name) if isinstance(name, str) else None
        if model is None:
            raise UserError(f"{name!r} is no task", where=where, instead=f"Write one of {', '.join(TASKS)}")
        try:
            found[name] = model.model_validate({} if settings is None else settings)
        except ValidationError as error:
            lines += [_explain(model, name, item) for item in error.errors(include_url=False)]
    if lines:
        raise UserError("; ".join(lines), where=where)
    delivery = Delivery(**{name: found.get(name) for name in RESERVED})
    if delivery.optimise is not None and delivery.export is None:
        delivery = replace(delivery, export=Export())
    task = found[named[0]]
    if delivery.round is None:
        return Assignment(task, delivery)
    try:
        return Assignment(applied(task, delivery.round), delivery)
    except ValidationError as error:
        lines = [_explain(type(task), named[0], item) for item in error.errors(include_url=False)]
        raise UserError("; ".join(lines), where=f"{where}, as round {delivery.round.number} changes it") from None


def load(path: Path) -> Assignment:
    """Read and validate a YAML file.

    Raises:
        UserError: the file is missing, is not YAML, or is wrong.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            "there is no such file", where=str(path), instead="`python -m lepton_trainer explain TASK` shows what to write"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        raise UserError(f"is not YAML: {getattr(error, 'problem', error)}", where=place) from None
    return assignment(document, str(path))


def _explain(model: type[BaseModel], task: str, item: ErrorDetails) -> str:
    """One validation error as a sentence that says what to write."""
    place = ".".join([task, *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        inside: Any = model
        for key in item["loc"][:-1]:
            inside = next(f.annotation for f in inside.model_fields.values() if f.alias == key)
        allowed = ", ".join(str(field.alias) for field in inside.model_fields.values())
        return f"{place} is not a setting (allowed there: {allowed})"
    message = item["msg"].removeprefix("Value error, ")
    return f"{place}: {message[0].lower() + message[1:]}" + (f", not {item['input']!r}" if item["type"] != "value_error" else "")
