"""A warm start: the weights of another run's best checkpoint, as far as they fit by name and shape; nothing else of it is used."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from lepton_trainer.train import lineage, ranks
from lepton_trainer.train.checkpoint import DAMAGED, MANIFEST, Event, sha256
from lepton_trainer.train.lineage import Point
from lepton_trainer.train.storage import Storage, open_storage


def start(directory: str, tensors: Mapping[str, Tensor], group: dist.ProcessGroup | None, event: Event) -> bool:
    """Fill those of `tensors` (model.NAME) that the best checkpoint below `directory` has in the same shape. Collective.

    An average of the weights, where that run kept one, is what its evaluation used, so it is preferred.

    Returns:
        whether anything was loaded; what it was, and what did not fit, is told as `WarmStarted`.
    """
    storage = ranks.together(lambda: open_storage(directory), group)
    point = ranks.from_first(lambda: _best(storage), group)
    if point is None:
        event("WarmStarted", f"nothing was loaded: there is no whole checkpoint in {storage.where}")
        return False
    folder = ranks.together(lambda: storage.fetch(point.path, list(_manifest(storage, point)["files"])), group)
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    wanted: dict[str, Tensor] = {}
    unfit: list[str] = []
    for name, tensor in tensors.items():
        source = name.replace("model.", "average.", 1) if name.replace("model.", "average.", 1) in stored else name
        kept = stored.get(source)
        if isinstance(kept, TensorStorageMetadata) and kept.size == tensor.shape:
            wanted[source] = tensor
        else:
            unfit.append(name.removeprefix("model."))
    # Each stage of a pipeline tells of its own; loading is collective, so it is done where any rank has something to load.
    everyone = ranks.gather((len(wanted), unfit), group)
    loaded, left = max(count for count, _ in everyone), sorted({name for _, names in everyone for name in names})
    if loaded:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(wanted, storage_reader=FileSystemReader(folder), process_group=group)
    storage.release(point.path)
    rest = f"; {len(left)} do not fit and begin anew: {', '.join(left[:3])}{', ...' if len(left) > 3 else ''}" if left else ""
    event("WarmStarted", f"{loaded} tensors are loaded from step {point.step} in {storage.where}{rest}")
    return loaded > 0


def _best(storage: Storage) -> Point | None:
    """The newest whole checkpoint that was its run's best at the time, else the newest whole one."""
    found: list[tuple[bool, Point]] = []
    for name in storage.names(""):
        generation = lineage.generation_of(name)
        if generation is None:
            continue
        for inner in storage.names(name):
            step = lineage.step_of(inner)
            if step is None or MANIFEST not in (files := storage.names(f"{name}/{inner}")) or DAMAGED in files:
                continue
            point = Point(step, generation)
            try:
                facts = _manifest(storage, point)["facts"]
                found.append((facts["best"] is not None and facts["worse"] == 0, point))
            except (OSError, ValueError, KeyError, TypeError):
                continue
    for _, point in sorted(found, reverse=True):
        if _whole(storage, point):
            return point
    return None


def _manifest(storage: Storage, point: Point) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(storage.read(f"{point.path}/{MANIFEST}"))
    return found


def _whole(storage: Storage, point: Point) -> bool:
    files: dict[str, Any] = _manifest(storage, point)["files"]
    try:
        folder: Path = storage.fetch(point.path, list(files))
        return all(sha256(folder / name) == known["sha256"] for name, known in files.items())
    except OSError:
        return False
