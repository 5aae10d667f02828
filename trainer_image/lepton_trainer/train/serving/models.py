"""An exported model as the server holds it: found, verified, built from the code of the model room, and warmed up. Nothing is unpickled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import nn

from lepton_trainer.train import models
from lepton_trainer.train.delivery import manifest
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.serving.adapters import Adapter, adapter
from lepton_trainer.train.storage import Storage


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """One version of a model, ready to answer."""

    manifest: dict[str, Any]
    model: nn.Module
    adapter: Adapter

    @property
    def digest(self) -> str:
        found: str = self.manifest["digest"]
        return found

    def answer(self, items: Sequence[Any]) -> list[dict[str, Any]]:
        """Predictions for any number of items, computed `limit` at a time."""
        limit = self.adapter.limit
        with torch.inference_mode():
            return [row for first in range(0, len(items), limit) for row in self.adapter.answer(self.model, items[first : first + limit])]


def found(storage: Storage) -> dict[str, Any]:
    """The manifest of the model that lies there.

    Raises:
        UserError: none does.
    """
    document = manifest.read(storage)
    if document is None:
        raise UserError(
            f"holds no {manifest.NAME}, so no model is exported there",
            where=storage.where,
            instead="Name the directory that an export wrote; the event ModelExported names it",
        )
    return document


def load(storage: Storage, document: dict[str, Any], device: torch.device) -> Served:
    """The model of a manifest, warmed up with one instance and with as many as are ever computed at once.

    Raises:
        UserError: files are damaged, or belong to a task or model that this version doesn't know.
    """
    folder = manifest.fetch(storage, document)
    try:
        preprocessing = json.loads((folder / manifest.ENCODER).read_text())
        chosen = adapter(document["task"], preprocessing)
        # Read and not mapped: a file that is changed under a mapping would end the process.
        tensors = safetensors.torch.load((folder / manifest.WEIGHTS).read_bytes())
        model = models.restored(document["model"], preprocessing, tensors)
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"this version cannot serve the model ({error})", where=storage.where, instead="Use the trainer image that exported it"
        ) from None
    finally:
        storage.release(document["version"])
    served = Served(document, model.to(device), chosen)
    for count in (1, chosen.limit):
        served.answer([chosen.read(chosen.example()) for _ in range(count)])
    return served
