"""`model.json`: what an exported model is, written last. Without it a directory holds no model; with it, every file is there and hashed.

    DIR/model.json                           the manifest: it names the files of the newest version
    DIR/step-000000340-5f0c/model.safetensors, preprocessing.json, README.md, curves.png ...

A version's files lie in a directory of their own and are never changed, so a server reads the old or the new model and never a mixture.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepton_trainer.train.errors import UserError
from lepton_trainer.train.storage import Storage

NAME, VERSION = "model.json", 1
WEIGHTS, ENCODER = "model.safetensors", "preprocessing.json"


def digest(description: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]) -> str:
    """One hash of what decides a prediction: the model's description, its weights and the encoder."""
    decisive = sorted((name.rsplit("/", 1)[-1], fact["sha256"]) for name, fact in files.items() if name.endswith((WEIGHTS, ENCODER)))
    return hashlib.sha256(json.dumps([description, decisive], sort_keys=True).encode()).hexdigest()


def read(storage: Storage) -> dict[str, Any] | None:
    """The manifest, None where nothing is exported.

    Raises:
        UserError: it is no manifest, or one of a later version.
        Unreachable: the place does not answer.
    """
    try:
        content = storage.read(NAME)
    except FileNotFoundError:
        return None
    try:
        found: dict[str, Any] = json.loads(content)
        version, _ = found["format"], (found["digest"], found["files"], found["model"], found["task"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{NAME} is no model's manifest ({error!r})", where=storage.where, instead="Export the model again") from None
    if version != VERSION:
        raise UserError(
            f"{NAME} has format {version}, this version reads {VERSION}",
            where=storage.where,
            instead="Use the trainer image that exported it",
        )
    return found


def fetch(storage: Storage, manifest: Mapping[str, Any]) -> Path:
    """The version's directory here, its weights and encoder unchanged since they were exported.

    Raises:
        UserError: a file is missing or damaged.
    """
    folder = manifest["version"]
    needed = {name: fact for name, fact in manifest["files"].items() if name.endswith((WEIGHTS, ENCODER))}
    try:
        local = storage.fetch(folder, [name.rsplit("/", 1)[-1] for name in needed])
        for name, fact in needed.items():
            if hash_of(local / name.rsplit("/", 1)[-1]) != fact["sha256"]:
                raise UserError(f"{name} has changed since it was exported", where=storage.where, instead="Export the model again")
    except OSError as error:
        raise UserError(f"a file of the model cannot be read: {error}", where=storage.where, instead="Export the model again") from None
    return local


def hash_of(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
