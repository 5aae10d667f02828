"""Checkpoints that can be trusted: asynchronous, resharding, hashed file by file, committed last, fenced in the storage itself.

`save` copies the state while the next step computes (`before_update` waits for the copy, nothing else does), then a thread writes it
with torch.distributed.checkpoint, hashes every file and commits by creating the manifest, which fails if it exists. `restore` takes
the newest checkpoint of the run's line whose hashes are right; one that is damaged is marked, said, and the one before it used.
The layout and the fencing are in `lineage.py`. All methods but `wait` are collective: every rank calls them at the same step.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._state_dict_utils import _copy_state_dict, _create_cpu_state_dict
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from lepton_trainer.report import notice, report
from lepton_trainer.train import lineage, ranks
from lepton_trainer.train.errors import Fenced, UserError
from lepton_trainer.train.lineage import Point
from lepton_trainer.train.storage import Storage, open_storage

MANIFEST, DAMAGED = "manifest.json", "DAMAGED.json"
Event = Callable[[str, str], None]


@dataclass(slots=True)
class Timing:
    """Seconds that training stood still for checkpoints, and what the last one took and weighed."""

    blocked: float = 0.0
    write: float = 0.0
    bytes: int = 0
    written: int = 0
    failed: int = 0


@dataclass(slots=True)
class _Job:
    """One checkpoint on its way."""

    step: int
    facts: dict[str, Any]
    thread: threading.Thread
    copied: threading.Event = field(default_factory=threading.Event)


def tell(kind: str, message: str) -> None:
    """The news of a checkpoint to Lepton: a saved one is the job's newest, everything else an event of the job."""
    if kind == "CheckpointSaved":
        report(checkpoint=message, checkpoint_step=lineage.step_of(message.rsplit("/", 1)[-1]))
    else:
        notice(kind, message)


class Checkpointer:
    """The checkpoints of one run below `path`, a directory or an fsspec URL; none are kept where it is empty.

    Args:
        identity: what a checkpoint must have been written with to be loaded here (model, data, seed ...); JSON.
        keep: how many of the line stay; older ones are deleted after a commit.
        event: called with a kind (`CheckpointDamaged`, `CheckpointFailed`, `CheckpointSaved`, `CheckpointsSavedAgain`, `Resumed`) and a
            sentence, on rank 0 only; Lepton is told by default.
    """

    def __init__(self, path: str, identity: Mapping[str, Any], keep: int = 2, event: Event = tell) -> None:
        self.distributed = dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.distributed else 0
        # A group of its own: these collectives run beside those of the training steps.
        self.group = ranks.side_group()
        self.storage: Storage = ranks.together(lambda: open_storage(path), self.group)
        self.identity, self.keep, self.event = dict(identity), keep, event
        self.generation = 0
        self.timing = Timing()
        self.last: Point | None = None
        self._job: _Job | None = None
        self._failure: Exception | None = None
        self._buffers: dict[str, Any] = {}
        self.problem = ""  # why the newest checkpoint was not saved; empty: it was
        self._failing = 0

    # -- reading -----------------------------------------------------------------------------------------------------------------

    def restore(self, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        """Fill `tensors` in place from the newest good checkpoint of the line, and begin a new generation.

        Returns:
            the facts given to `save`, or None where there is nothing to resume from.
        Raises:
            UserError: the checkpoint belongs to something else, or every one is damaged; nothing is overwritten or deleted.
            Fenced: a newer generation of the same launcher has begun.
        """
        point, manifest = None, None
        candidates = ranks.from_first(self._line, self.group)
        for candidate in candidates:
            manifest = self._verified(candidate)
            if manifest is not None:
                point = candidate
                break
        if candidates and point is None:
            raise UserError(
                f"all {len(candidates)} checkpoints are damaged",
                where=self.storage.where,
                instead="Look at the DAMAGED.json files in it, then empty it or write another checkpoint.path to begin anew",
            )
        self.generation = ranks.from_first(lambda: self._begin(point), self.group)
        if point is None or manifest is None:
            return None
        folder = self.storage.fetch(point.path, list(manifest["files"]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load(tensors, storage_reader=FileSystemReader(folder), process_group=self.group)
        self.storage.release(point.path)
        self.last = point
        if self.rank == 0:
            self.event("Resumed", f"from the checkpoint of step {point.step} in {self.storage.where}/{point.path}")
        facts: dict[str, Any] = manifest["facts"]
        return facts

    def _line(self) -> list[Point]:
        steps: dict[int, set[int]] = {}
        origins: dict[int, Point | None] = {}
        for name in self.storage.names(""):
            generation = lineage.generation_of(name)
            if generation is None:
                continue
            steps[generation] = set()
            for inner in self.storage.names(name):
                step = lineage.step_of(inner)
                if step is not None and MANIFEST in (files := self.storage.names(f"{name}/{inner}")) and DAMAGED not in files:
                    steps[generation].add(step)
            try:
                resume = json.loads(self.storage.read(f"{name}/start.json"))["resume"]
                origins[generation] = Point(resume["step"], resume["generation"]) if resume else None
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return lineage.line(steps, origins)

    def _verified(self, point: Point) -> dict[str, Any] | None:
        """The manifest of a checkpoint whose files are all there and unchanged; None, and a mark beside it, where they are not."""

        def check() -> tuple[dict[str, Any] | None, str]:
            if self.rank and self.storage.shared:
                return None, ""
            try:
                manifest = json.loads(self.storage.read(f"{point.path}/{MANIFEST}"))
                files: dict[str, Any] = manifest["files"]
                identity = manifest["identity"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                return None, f"its manifest cannot be read ({error})"
            if identity != self.identity:
                return manifest, ""
            try:
                folder = self.storage.fetch(point.path, list(files))
                for name, known in files.items():
                    size = (folder / name).stat().st_size
                    if size != known["size"]:
                        return None, f"{name} has {size} bytes instead of {known['size']}"
                    if sha256(folder / name) != known["sha256"]:
                        return None, f"{name} has changed since it was written"
            except FileNotFoundError as error:
                return None, f"a file is missing ({error.filename or error})"
            except OSError as error:
                return None, f"a file cannot be read ({error})"
            return manifest, ""

        everyone = ranks.gather(ranks.together(check, self.group), self.group)
        reason = next((text for _, text in everyone if text), "")
        manifest = everyone[0][0]
        if not reason and manifest is not None and manifest["identity"] != self.identity:
            self._refuse(point, manifest["identity"])
        if not reason:
            return manifest
        self.storage.release(point.path)
        if self.rank == 0:
            mark = {"reason": reason, "time": time.time()}
            self.storage.create(f"{point.path}/{DAMAGED}", json.dumps(mark).encode())
            self.event(
                "CheckpointDamaged", f"the checkpoint of step {point.step} ({self.storage.where}/{point.path}) is not used: {reason}"
            )
        return None

    def _refuse(self, point: Point, found: dict[str, Any]) -> None:
        names = sorted(set(found) | set(self.identity))
        differing = [
            f"{name} {found.get(name)} there, {self.identity.get(name)} here"
            for name in names
            if found.get(name) != self.identity.get(name)
        ]
        raise UserError(
            f"its checkpoint (step {point.step}) was written by another run: {'; '.join(differing)}",
            where=self.storage.where,
            instead="Undo the change of the configuration, or write another checkpoint.path to begin anew; nothing was overwritten",
        )

    def _begin(self, point: Point | None) -> int:
        """Take the next generation's number, by creating its start file; on rank 0."""
        launcher = int(os.environ.get("LEPTON_GENERATION") or -1)
        job = os.environ.get("LEPTON_JOB_UID", "")
        while True:
            known = [number for name in self.storage.names("") if (number := lineage.generation_of(name)) is not None]
            newest = max(known, default=0)
            if launcher >= 0 and newest:
                try:
                    start = json.loads(self.storage.read(f"gen-{newest}/start.json"))
                    if start["job"] == job and start["launcher"] > launcher:
                        raise Fenced(f"generation {start['launcher']} has begun, this is generation {launcher}", where=self.storage.where)
                except (OSError, ValueError, KeyError, TypeError):
                    pass
            start = {
                "generation": newest + 1,
                "launcher": launcher,
                "job": job,
                "resume": {"generation": point.generation, "step": point.step} if point else None,
            }
            if self.storage.create(f"gen-{newest + 1}/start.json", json.dumps(start).encode()):
                return newest + 1

    # -- writing -----------------------------------------------------------------------------------------------------------------

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], volatile: frozenset[str] = frozenset()) -> None:
        """Begin to write a checkpoint; returns at once, unless the one before is still being written.

        Args:
            tensors: the same names on every rank that holds them; replicated or DTensors. Must not change before `before_update`
                returns, except those named in `volatile`, which are copied here.
            facts: JSON, handed back by `restore`.
        """
        if not self.generation:
            raise RuntimeError("call restore before save: it begins the generation that is written")
        if not self.storage.kept:
            return
        begun = time.perf_counter()
        self.close()
        current: dict[str, Tensor] = {name: t.detach().clone() if name in volatile else t.detach() for name, t in tensors.items()}
        ready = torch.cuda.current_stream().record_event() if torch.cuda.is_available() else None
        job = _Job(step, dict(facts), threading.Thread(target=lambda: self._write(job, current, ready), name="checkpoint", daemon=True))
        self._job = job
        job.thread.start()
        self.timing.blocked += time.perf_counter() - begun

    def before_update(self) -> None:
        """Wait until the state has been copied; call it before the weights change."""
        if self._job is not None and not self._job.copied.is_set():
            begun = time.perf_counter()
            self._job.copied.wait()
            self.timing.blocked += time.perf_counter() - begun

    def wait(self) -> None:
        """Wait until nothing is being written any more."""
        if self._job is not None:
            self._job.thread.join()
            self._job = None

    def close(self) -> None:
        """Wait, and raise what went wrong for good."""
        self.wait()
        self._raise()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _write(self, job: _Job, tensors: dict[str, Tensor], ready: Any) -> None:
        """The thread: copy, write, hash, agree, commit. Whatever fails is an event, and training goes on; only a fence ends it."""
        begun = time.perf_counter()
        point = Point(job.step, self.generation)
        try:
            try:
                state = self._copy(tensors, ready)
            finally:
                job.copied.set()
            files, problem = {}, ""
            try:
                folder = self.storage.folder(point.path)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    writer = FileSystemWriter(folder, sync_files=True)
                    save(state, storage_writer=writer, process_group=self.group)
                for file in sorted(folder.glob(f"__{self.rank}_*")) + ([folder / ".metadata"] if self.rank == 0 else []):
                    files[file.name] = {"size": file.stat().st_size, "sha256": sha256(file)}
                self.storage.publish(point.path, list(files))
            except (Exception, CheckpointException) as error:  # a full disk and a lost endpoint show in many ways
                problem = _short(error)
                free, needed = self.storage.free(), sum(t.numel() * t.element_size() for t in tensors.values())
                if free is not None and free < needed:
                    problem += f" ({free / 1e6:,.1f} MB free, {needed / 1e6:,.1f} MB needed)"
            everyone = ranks.gather((files, problem), self.group)
            problem = next((text for _, text in everyone if text), "")
            if not problem:
                merged = {name: fact for found, _ in everyone for name, fact in found.items()}
                problem = ranks.from_first(lambda: self._commit(point, job, merged), self.group)
            self._settle(point, problem, time.perf_counter() - begun)
        except Exception as error:
            self._failure = error

    def _copy(self, tensors: dict[str, Tensor], ready: Any) -> dict[str, Any]:
        """The tensors on the CPU, in buffers that are used again each time."""
        if self._buffers.keys() != tensors.keys():
            self._buffers = _create_cpu_state_dict(tensors, pin_memory=torch.cuda.is_available())
        if ready is None:
            return _copy_state_dict(tensors, self._buffers)
        with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
            torch.cuda.current_stream().wait_event(ready)
            state = _copy_state_dict(tensors, self._buffers, non_blocking=True)
            torch.cuda.current_stream().synchronize()
        return state

    def _commit(self, point: Point, job: _Job, files: dict[str, Any]) -> str:
        """On rank 0: create the manifest, then delete what is not kept. Returns what went wrong, or nothing."""
        try:
            names = self.storage.names("")
        except Exception as error:
            return _short(error)
        newest = max((n for name in names if (n := lineage.generation_of(name)) is not None), default=0)
        if newest > self.generation:
            raise Fenced(f"generation {newest} has begun, this is generation {self.generation}", where=self.storage.where)
        manifest = {
            "step": point.step,
            "generation": point.generation,
            "world": dist.get_world_size() if self.distributed else 1,
            "time": time.time(),
            "identity": self.identity,
            "facts": job.facts,
            "files": files,
        }
        self.timing.bytes = sum(fact["size"] for fact in files.values())
        try:
            if not self.storage.create(f"{point.path}/{MANIFEST}", json.dumps(manifest).encode()):
                return "a checkpoint of this step and generation exists"
        except Exception as error:
            return _short(error)
        with contextlib.suppress(Exception):  # what could not be deleted now is tried again after the next commit
            self._prune()
        return ""

    def _prune(self) -> None:
        """Keep the newest `keep` of the line, and the damaged ones among them; delete older ones and what is out of the line."""
        known = self._line()
        kept = set(known[: self.keep])
        oldest = min(kept)
        for name in self.storage.names(""):
            generation = lineage.generation_of(name)
            if generation is None:
                continue
            if generation < oldest.generation:
                self.storage.delete(name)
                continue
            for inner in self.storage.names(name):
                step = lineage.step_of(inner)
                if step is None or Point(step, generation) in kept:
                    continue
                damaged = DAMAGED in self.storage.names(f"{name}/{inner}")
                if step < oldest.step or not damaged:
                    self.storage.delete(f"{name}/{inner}")

    def _settle(self, point: Point, problem: str, seconds: float) -> None:
        self.timing.write, self.problem = seconds, problem
        if problem:
            self.timing.failed += 1
            self._failing += 1
            if self.rank == 0:
                with contextlib.suppress(Exception):  # without a manifest it counts as nothing, deleted or not
                    self.storage.delete(point.path)
                self.event("CheckpointFailed", f"step {point.step} is not saved, training goes on: {problem}")
        else:
            self.timing.written += 1
            self.last = point
            if self.rank == 0:
                self.event("CheckpointSaved", f"{self.storage.where}/{point.path}")
                if self._failing:
                    self.event("CheckpointsSavedAgain", f"the checkpoint of step {point.step} is saved, {self._failing} before it were not")
            self._failing = 0
        self.storage.release(point.path)


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _short(error: BaseException) -> str:
    """The last line of an error, which is where torch.distributed.checkpoint puts the cause."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].strip()[:300]}" if lines else type(error).__name__
