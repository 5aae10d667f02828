"""What a run does once its last checkpoint is committed: every rank brings its part of the model, rank 0 draws, optimises and exports.

Nothing here touches the checkpoints. A run that is killed in between does it when it is started again; one that has done it, does not do
it twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from lepton_trainer.train import looks, models
from lepton_trainer.train.config import TaskConfig, name_of
from lepton_trainer.train.delivery import card, formats, judging, manifest
from lepton_trainer.train.delivery.judging import Candidate
from lepton_trainer.train.delivery.optimising import Work, optimise
from lepton_trainer.train.delivery.whole import whole
from lepton_trainer.train.errors import TrainerError, Unreachable, UserError
from lepton_trainer.train.optim import Average
from lepton_trainer.train.parallel import Engine
from lepton_trainer.train.ranks import Place
from lepton_trainer.train.reporting import Journal
from lepton_trainer.train.settings.delivery import Delivery, Export
from lepton_trainer.train.storage import Storage, open_storage
from lepton_trainer.train.tasks import Task

KEPT = "the checkpoints are kept, and a new start of the run exports"


@dataclass(frozen=True, slots=True)
class Run:
    """A run that is over, or about to begin: what it learns, with which settings, and where it is written."""

    config: TaskConfig
    delivery: Delivery
    task: Task
    place: Place
    checkpoints: str
    output: Path

    @property
    def target(self) -> str:
        """Where the model goes."""
        export = self.delivery.export or Export()
        if not export.path:
            return f"{self.checkpoints or self.output}/model"
        return f"{export.path.rstrip('/')}/round-{self.delivery.round.number}" if self.delivery.round else export.path


def check(run: Run) -> None:
    """Before the first step, on one rank: the place of the model can be written.

    Raises:
        UserError, Unreachable: it can't; better known now than after the last step.
    """
    if run.delivery.export is None:
        return
    try:
        storage = open_storage(run.target)
        storage.replace(".writable", b"")
        storage.delete(".writable")
    except Exception as error:
        raise _unwritten(run.target, error) from None


def conclude(run: Run, engine: Engine, average: Average | None, journal: Journal, group: dist.ProcessGroup | None, step: int) -> None:
    """Collective until the model is whole on rank 0; the other ranks are done then.

    Raises:
        UserError, Unreachable: the model could not be written; `ExportFailed` says so, too.
    """
    if not run.config.output.plots and run.delivery.export is None:
        return
    tensors = whole(engine, average, group)
    if run.place.rank:
        return
    model = models.restored(run.task.description, run.task.preprocessing, tensors).to(run.place.device)
    if run.config.output.plots:
        try:
            looks.draw(run.task, *judging.outputs_of(model, run.task, run.place.device), run.output)
        except Exception as error:  # pictures cost a line, never the run
            journal.progress.say(f"the pictures of the evaluation could not be drawn: {type(error).__name__}: {error}")
    if run.delivery.export is None:
        return
    source = _source(run, step)
    try:
        storage = open_storage(run.target)
        exported = manifest.read(storage)
        if exported is not None and exported["source"] == source:
            journal.event("ModelExported", f"{storage.where} holds the model of step {step} already")
            return
        found = export(run, model, source, storage, journal)
    except Exception as error:
        told = _unwritten(run.target, error)
        journal.event("ExportFailed", str(told))
        raise told from None
    figure = found["metrics"][run.task.metric]
    journal.event(
        "ModelExported", f"{storage.where}: {run.task.metric} {figure:.4f}, {found['size']:,} bytes, digest {found['digest'][:12]}"
    )


def export(run: Run, trained: nn.Module, source: dict[str, Any], storage: Storage, journal: Journal) -> dict[str, Any]:
    """Optimise, write a new version, commit it, drop what is older than the one before it; returns the manifest."""
    task, device, wishes = run.task, run.place.device, run.delivery.export or Export()
    original = judging.judge(trained, task.description, task, device)
    best: Candidate = original
    rows: list[dict[str, Any]] = []
    if run.delivery.optimise is not None:
        best, rows = optimise(run.delivery.optimise, Work(task, run.config, device, original), journal.event)
    version = f"step-{source['step']:09d}-{os.urandom(3).hex()}"
    folder = storage.folder(version)
    tensors = {name: t.detach().cpu().contiguous() for name, t in best.model.state_dict().items()}
    try:
        save_file(tensors, folder / manifest.WEIGHTS, metadata={"format": "pt"})
    except SafetensorError as error:  # its own kind for whatever the disk says
        raise OSError(str(error)) from None
    # What is written is what is judged: the file, loaded again. Judging comes before the encoder is written, because a task may decide
    # something there that belongs to this model, such as a threshold.
    loaded = models.restored(best.description, task.preprocessing, load_file(folder / manifest.WEIGHTS)).to(device)
    best = judging.judge(loaded, best.description, task, device)
    (folder / manifest.ENCODER).write_text(json.dumps(task.preprocessing))
    loaded.cpu()
    made: dict[str, dict[str, Any]] = {}
    for kind in wishes.formats:
        if kind == "safetensors":
            continue
        try:
            made[kind] = formats.write(kind, loaded, task, folder)
        except formats.Inexact as error:
            (folder / formats.FILES[kind]).unlink(missing_ok=True)
            journal.event("ExportFailed", f"{error}; the model is exported without it")
    if (run.output / "curves.png").exists():
        shutil.copyfile(run.output / "curves.png", folder / "curves.png")
    found = {
        "format": manifest.VERSION,
        "task": name_of(run.config),
        "model": best.description,
        "labels": task.preprocessing.get("labels", []),
        "metric": task.metric,
        "mode": task.mode,
        "metrics": best.figures,
        "size": best.size,
        "milliseconds": round(best.single, 3),
        "optimisations": rows,
        "formats": made,
        "licence": wishes.licence,
        "source": source,
        "configuration": run.config.model_dump(by_alias=True),
        "torch": torch.__version__,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": version,
        "files": _files(folder, version),
    }
    found["digest"] = manifest.digest(best.description, found["files"])
    (folder / "README.md").write_text(card.text(found))
    found["files"] = _files(folder, version)
    storage.publish(version, [file.name for file in sorted(folder.iterdir())])
    before = manifest.read(storage)
    storage.replace(manifest.NAME, json.dumps(found, indent=2).encode())
    storage.release(version)
    for name in storage.names(""):
        if name.startswith("step-") and name not in (version, before and before["version"]):
            storage.delete(name)
    return found


def _files(folder: Path, version: str) -> dict[str, Any]:
    """Each file of the version, synchronised with the disk, by its name below the export's directory."""
    found = {}
    for file in sorted(folder.iterdir()):
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
        found[f"{version}/{file.name}"] = {"size": file.stat().st_size, "sha256": manifest.hash_of(file)}
    return found


def _source(run: Run, step: int) -> dict[str, Any]:
    """What the export was made of and how; the same again is not made twice."""
    asked = {name: value.model_dump() for name in ("optimise", "export") if (value := getattr(run.delivery, name)) is not None}
    made = {"identity": run.task.identity, "seed": run.config.training.seed, "asked": asked}
    text = json.dumps(made, sort_keys=True, default=str)
    number = run.delivery.round.number if run.delivery.round else 1
    return {"step": step, "round": number, "data": run.task.identity["data"], "key": hashlib.sha256(text.encode()).hexdigest()[:32]}


def _unwritten(target: str, error: Exception) -> Exception:
    """What went wrong with the place, as a sentence; a bug of ours stays what it is."""
    if isinstance(error, TrainerError):
        return error
    if "://" in target:
        what, advice = f"{type(error).__name__}: {error}", f"See that the store answers; {KEPT}"
        return Unreachable(f"the model cannot be written: {what}", where=target, instead=advice)
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        return UserError(f"the model cannot be written: {what}", where=target, instead=f"Write another export.path; {KEPT}")
    return error
