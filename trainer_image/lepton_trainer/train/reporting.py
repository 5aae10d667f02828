"""The run's words to the outside: figures and events to Lepton, history and curves to files, progress to a person, and the wish to stop.

Inside a Lepton job the figures reach Prometheus and `kubectl get`; elsewhere `report` does nothing and the rest is the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from lepton_trainer.protocol import names
from lepton_trainer.report import checkpoint_dir, report, should_stop
from lepton_trainer.train import plots, ranks
from lepton_trainer.train.checkpoint import tell
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.progress import Progress
from lepton_trainer.train.throughput import Rates

__all__ = ["Journal", "Stopping", "peak_memory", "places", "report"]


def places(task: str, checkpoints: str, output: str) -> tuple[str, Path]:
    """Where checkpoints go, empty for nowhere, and where everything else goes; each as configured, where it is.

    A job without a claim keeps none: its workers share no directory. What it says beside them goes to the machine's temporary directory,
    because the working directory of a pod cannot be written.
    """
    job = os.environ.get(names.JOB_UID, "")
    aside = Path(tempfile.gettempdir(), f"lepton-{job}-output") if job else Path("runs", task)
    path = checkpoints or checkpoint_dir() or ("" if job else str(aside))
    return path, Path(output or (path if path and "://" not in path else aside))


class Stopping:
    """Whether to stop after this step, the same answer on every rank at the same step.

    Lepton's own word is agreed already. A SIGTERM reaches the ranks at different steps, so each tells the others along a small
    asynchronous reduction, whose result is looked at one step later and costs no step any waiting.
    """

    def __init__(self) -> None:
        self.terminated = False
        self._group = ranks.side_group()
        self._flag = torch.zeros(1)
        self._pending: Any = None
        self._previous: Any = None

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._signal)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _signal(self, _number: int, _frame: FrameType | None) -> None:
        self.terminated = True

    def now(self) -> bool:
        """Ask once per optimiser step, on every rank."""
        asked = should_stop()
        if self._group is None:
            return asked or self.terminated
        if self._pending is not None:
            self._pending.wait()
        agreed = bool(self._flag.item())
        self._flag.fill_(float(self.terminated or agreed))
        self._pending = dist.all_reduce(self._flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        self.terminated = self.terminated or agreed
        return asked or agreed


_COUNTED = {"CheckpointDamaged": "checkpoints_damaged", "CheckpointFailed": "checkpoints_failed"}


class Journal:
    """What happened, on rank 0; the other ranks' journals stay silent."""

    def __init__(self, rank: int, directory: Path, metric: str, total_steps: int, draws: bool) -> None:
        self.active = rank == 0
        self.directory, self.metric, self.total_steps = directory, metric, total_steps
        self.draws = draws and self.active
        self.history: list[dict[str, Any]] = []
        self.progress = Progress(sys.stderr, total_steps, sys.stderr.isatty())
        self._plot: threading.Thread | None = None
        self._counts: dict[str, int] = {}
        self._unwritten: set[str] = set()
        if self.active:
            try:
                directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"cannot be made: {error.strerror}", where=str(directory), instead="Write another output.directory"
                ) from None

    def resume(self, step: int) -> None:
        """Go on after `step`: what was written of later steps by a run that was interrupted is dropped."""
        file = self.directory / "history.jsonl"
        if not self.active:
            return
        with contextlib.suppress(FileNotFoundError):
            for line in file.read_text().splitlines():
                with contextlib.suppress(ValueError):  # the last line of a killed run may be cut
                    row = json.loads(line)
                    if row["step"] <= step:
                        self.history.append(row)
        self._write(file, "".join(f"{json.dumps(row)}\n" for row in self.history))

    def stepped(self, step: int, samples: int, tokens: int) -> None:
        """After every step, on every rank: that it is alive and how far; all ranks' samples are counted once, on rank 0."""
        if self.active:
            report(step=step, samples=samples, tokens=tokens or None, total_steps=self.total_steps)
        else:
            report(step=step)

    def training(self, step: int, consumed: int, epoch: float, loss: float, rate: float, norm: float, rates: Rates, blocked: float) -> None:
        """Figures of the interval that ended with `step`; `loss` is that step's own, `norm` its gradient's, `blocked` all seconds that
        checkpoints have kept training waiting."""
        if not self.active:
            return
        self._keep(
            {"step": step, "consumed": consumed, "epoch": round(epoch, 4), "loss": loss, "learning_rate": rate, "gradient_norm": norm}
        )
        self.progress.step(step, epoch, loss, rate, rates)
        figures = {
            "learning_rate": rate,
            "gradient_norm": norm,
            "step_seconds": rates.step_seconds,
            "samples_per_second": rates.samples_per_second,
            "data_wait_ratio": rates.data_wait,
            "checkpoint_blocked_seconds": blocked,
            "memory_bytes": float(peak_memory()),
            "epoch": epoch,
        }
        if rates.tokens_per_second:
            figures["tokens_per_second"] = rates.tokens_per_second
        if rates.mfu:
            figures["mfu"] = rates.mfu
        report(loss=loss, metrics=figures)

    def evaluation(self, step: int, figures: dict[str, float]) -> None:
        if not self.active:
            return
        self._keep({"step": step, **figures})
        self.progress.say(f"step {step}: " + "  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        report(metrics=figures)
        if self.draws and (self._plot is None or not self._plot.is_alive()):
            self._plot = threading.Thread(target=self._draw, args=(list(self.history),), name="plot", daemon=True)
            self._plot.start()

    def final(self, figures: dict[str, float]) -> None:
        """The figures of a run that was over when it was started: told to Lepton again, whose agent may not have heard them."""
        if self.active:
            report(metrics=figures)

    def event(self, kind: str, message: str) -> None:
        """Something a user should know of; called from the checkpoint's thread too."""
        if not self.active:
            return
        tell(kind, message)
        if kind == "CheckpointSaved":
            return
        self.progress.say(f"{kind}: {message}")
        if kind in _COUNTED:
            self._counts[kind] = self._counts.get(kind, 0) + 1
            report(metrics={_COUNTED[kind]: float(self._counts[kind])})

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result, and the curves once more with everything in them."""
        if not self.active:
            return
        if self._plot is not None:
            self._plot.join()
        if self.draws and self.history:
            self._draw(list(self.history))
        self._write(self.directory / "result.json", json.dumps(result, indent=2) + "\n")
        self.progress.close()

    def _keep(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        file = self.directory / "history.jsonl"
        try:
            with file.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
        except OSError as error:
            self.unwritten(str(file), error)

    def _write(self, file: Path, text: str) -> None:
        """The whole file, at once."""
        partial = file.with_name(f".{file.name}.new")
        try:
            partial.write_text(text)
            partial.replace(file)
        except OSError as error:
            self.unwritten(str(file), error)

    def unwritten(self, file: str, error: OSError) -> None:
        """A full disk costs what is written beside the checkpoints, and not the run; each file is named once."""
        if file not in self._unwritten:
            self._unwritten.add(file)
            self.progress.say(f"{file} cannot be written, training goes on: {error.strerror}")

    def _draw(self, history: list[dict[str, Any]]) -> None:
        try:
            plots.draw(history, self.metric, self.directory / "curves.png")
        except Exception as error:
            self.progress.say(f"the curves could not be drawn: {type(error).__name__}: {error}")


def peak_memory() -> int:
    """Bytes: the most that the GPU's allocator held, or that the process had resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
