"""What a training script may tell Lepton, and ask of it. All of it is optional, and a no-op outside Lepton.

    from lepton_trainer.report import checkpoint_dir, report, should_stop

A call is some stores into memory that the agent looks at when it wants to know: no system call, no synchronisation of the GPU, and never an
exception. Only the main process of a rank should call it.

Standard library only, Python >= 3.9; it imports no torch.
"""

import contextlib
import json
import math
import mmap
import os
import sys
import threading
import time
import zlib
from bisect import bisect_left
from typing import Any, Callable, Dict, Mapping, Optional

from lepton_trainer.protocol import names
from lepton_trainer.protocol import slot as s

GPU_LOSS_SECONDS = 0.25
"""How often a loss that lies on a GPU is looked at."""
STOP_WAIT_SECONDS = 2.0
"""How long a rank waits at the call at which it is to stop for the word that all ranks are."""


class Reporter:
    """Writes one slot; `buffer` has `slot.SIZE` bytes, aligned to 8. See `report` and `should_stop` for what the methods mean."""

    def __init__(self, buffer: Any, clock: Callable[[], float] = time.time) -> None:
        view = memoryview(buffer)
        self._view = view
        self._clock = clock
        self._words = view[:128].cast("Q")
        self._halves = [view[s.VALUES + s.HALF * half : s.VALUES + s.HALF * (half + 1)].cast("d") for half in (0, 1)]
        self._buckets = view[s.BUCKETS : s.BUCKETS + 8 * s.BUCKET_COUNT].cast("Q")
        self._recent = view[s.RECENT : s.RECENT + 8 * s.RECENT_COUNT].cast("d")
        self._reports = self._words[s.REPORTS]
        self._values = [0.0] * 16
        self._step: Optional[int] = None
        self._steps = 0
        self._timed = 0
        self._has = 0
        self._texts = self._words[s.TEXTS]
        self._text: Dict[str, Any] = {}
        self._gpu: Optional[_GpuLoss] = None
        self._calls = self._words[s.CALLS]
        self._armed = self._refused = 0
        self._stopped = False
        self._noticed = 0
        self._lock = threading.RLock()  # a checkpoint's thread tells of it beside the steps; uncontended, it costs no system call

    def report(
        self,
        step: Optional[int] = None,
        loss: Any = None,
        samples: Optional[float] = None,
        tokens: Optional[float] = None,
        total_steps: Optional[int] = None,
        metrics: Optional[Mapping[str, Any]] = None,
        checkpoint: Optional[str] = None,
        checkpoint_step: Optional[int] = None,
    ) -> None:
        with self._lock:
            self._report(step, loss, samples, tokens, total_steps, metrics, checkpoint, checkpoint_step)

    def _report(
        self,
        step: Optional[int],
        loss: Any,
        samples: Optional[float],
        tokens: Optional[float],
        total_steps: Optional[int],
        metrics: Optional[Mapping[str, Any]],
        checkpoint: Optional[str],
        checkpoint_step: Optional[int],
    ) -> None:
        values = self._values
        if total_steps is not None:
            values[s.TOTAL_STEPS] = total_steps
            self._has |= s.HAS_TOTAL
        if loss is not None:
            number = loss if type(loss) is float else self._loss(loss)
            if number is not None:
                values[s.LOSS] = number
                self._has |= s.HAS_LOSS
                if not math.isfinite(number):
                    values[s.NONFINITE] += 1
        if samples is not None:
            values[s.SAMPLES] += samples
        if tokens is not None:
            values[s.TOKENS] += tokens
        if step is not None:
            if step != self._step:
                self._advance(step, step - self._step if self._step is not None and step > self._step else 1)
                values[s.STEP] = self._step = step
                self._has |= s.HAS_STEP
                if not values[s.FIRST_TIME]:
                    values[s.FIRST_STEP] = step
                    values[s.FIRST_TIME] = values[s.TIME]
        elif loss is not None or samples is not None or tokens is not None:
            self._advance(None, 1)
        if checkpoint is not None:
            values[s.CHECKPOINT_STEP] = values[s.STEP] if checkpoint_step is None else checkpoint_step
            self._has |= s.HAS_CHECKPOINT
            self._name_checkpoint(os.fsdecode(checkpoint))
        if metrics is not None:
            self._keep(metrics)
        if metrics is not None or checkpoint is not None:
            self._write_text()
        self._reports = number_of = self._reports + 1
        values[s.NUMBER] = values[s.NUMBER_AGAIN] = number_of
        values[s.HAS] = self._has
        half = self._halves[number_of & 1]
        for index, value in enumerate(values):
            half[index] = value
        self._words[s.REPORTS] = number_of

    def _advance(self, step: Optional[int], count: int) -> None:
        """Counts `count` steps, and how long each took since the report before."""
        values = self._values
        now = self._clock()
        before = values[s.TIME]
        values[s.TIME] = now
        values[s.STEPS] += count
        if not before:
            if step is None:
                values[s.FIRST_TIME] = now
            return
        seconds = (now - before) / count
        if seconds < 0:  # the clock was set back
            return
        values[s.SECONDS] += seconds * count
        self._buckets[bisect_left(s.STEP_BUCKETS, seconds)] += count
        self._recent[self._timed % s.RECENT_COUNT] = seconds
        self._timed += 1

    def _loss(self, loss: Any) -> Optional[float]:
        device = getattr(loss, "device", None)
        if getattr(device, "type", "cpu") == "cpu":
            return float(loss.detach() if hasattr(loss, "detach") else loss)
        if self._gpu is None:
            self._gpu = _GpuLoss()
        return self._gpu.look(loss)

    def notice(self, reason: str, message: str) -> None:
        while len(json.dumps(message)) > s.NOTICE_LIMIT:
            message = message[: len(message) * 9 // 10 - 3].rstrip() + "..."
        with self._lock:
            self._noticed += 1
            others = [kept for kept in self._text.get("notices", []) if kept[1] != reason]
            self._text["notices"] = [*others, [self._noticed, reason, message]][-s.NOTICES :]
            self._write_text()

    def _name_checkpoint(self, path: str) -> None:
        if len(json.dumps(path)) > s.CHECKPOINT_LIMIT:
            _say_once(f"report(): a checkpoint's path of {len(path)} characters is too long to be shown")
        else:
            self._text["checkpoint"] = path

    def _keep(self, metrics: Mapping[str, Any]) -> None:
        """The newest come last; the oldest go where they are too many."""
        kept = self._text.setdefault("metrics", {})
        for name, value in metrics.items():
            if len(json.dumps(str(name))) > s.METRIC_NAME_LIMIT:
                _say_once(f"report(): the metric {str(name)[:40]!r}... is left out: a name has at most {s.METRIC_NAME_LIMIT} characters")
                continue
            kept.pop(str(name), None)
            kept[str(name)] = repr(float(value))
        going = list(kept)[: max(0, len(kept) - s.METRICS_LIMIT)]
        for name in going:
            del kept[name]
        while len(json.dumps(kept)) > s.METRICS_SPACE:
            going.append(next(iter(kept)))
            del kept[going[-1]]
        if going:
            most = f"{s.METRICS_LIMIT} names or {s.METRICS_SPACE} characters"
            _say_once(f"report(): more metrics than can be kept, {most}: those reported last are, {going[0]!r} is the first to go")

    def _write_text(self) -> None:
        payload = json.dumps(self._text).encode()
        while len(payload) > s.TEXT_LIMIT and "notices" in self._text:  # metrics and path have room of their own, notices what is left
            self._text["notices"] = self._text["notices"][1:]
            if not self._text["notices"]:
                del self._text["notices"]
            payload = json.dumps(self._text).encode()
        number = self._texts + 1
        start = s.TEXT + s.TEXT_HALF * (number % 2)
        s.TEXT_HEADER.pack_into(self._view, start, len(payload), zlib.crc32(payload))
        self._view[start + 8 : start + 8 + len(payload)] = payload
        self._texts = self._words[s.TEXTS] = number

    def should_stop(self) -> bool:
        words = self._words
        self._calls = calls = self._calls + 1
        words[s.CALLS] = calls
        if self._stopped:
            return True
        while True:
            offer = words[s.OFFER]
            if not offer:
                if self._armed:
                    words[s.ARMED] = self._armed = 0
                return False
            proposal, call = offer >> s.CALL_BITS, offer & s.CALL_MASK
            if proposal == self._refused or calls > call:
                return False
            if proposal != self._armed:
                words[s.ARMED] = self._armed = proposal
            if calls < call:
                return False
            if self._wait_for_word(offer, proposal):
                return True
            if words[s.OFFER] == offer:
                return False

    def _wait_for_word(self, offer: int, proposal: int) -> bool:
        """At the call of an armed proposal: true once it is committed, false when it was replaced or the wait was in vain."""
        words = self._words
        deadline = time.monotonic() + STOP_WAIT_SECONDS
        while words[s.COMMITTED] != proposal:
            if words[s.OFFER] != offer:
                words[s.ARMED] = self._armed = 0
                return False
            if time.monotonic() > deadline:
                words[s.REFUSED] = self._refused = proposal
                words[s.ARMED] = self._armed = 0
                return False
            time.sleep(0.0005)
        self._stopped = True
        words[s.STOPPED] = proposal
        return True


class _GpuLoss:
    """Takes a loss off a GPU without waiting for it: a copy is queued now and read at a later report, when it has long been made."""

    def __init__(self) -> None:
        self._host: Any = None
        self._event: Any = None
        self._queued = 0.0

    def look(self, loss: Any) -> Optional[float]:
        """The loss of an earlier report, if its copy has arrived; queues a copy of this one at most every `GPU_LOSS_SECONDS`."""
        arrived = None
        if self._event is not None and self._event.query():
            arrived = float(self._host)
            self._event = None
        if self._event is None and time.monotonic() - self._queued >= GPU_LOSS_SECONDS:
            import torch  # the loss is a tensor of it, so this costs nothing

            if self._host is None:
                self._host = torch.empty((), dtype=torch.float64, pin_memory=True)
                self._stage = torch.empty((), dtype=torch.float64, device=loss.device)
            self._stage.copy_(loss.detach().reshape(()))
            self._host.copy_(self._stage, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()
            self._queued = time.monotonic()
        return arrived


_said = False


def _say_once(text: str) -> None:
    """One line in the log of the worker's lowest rank, which is the one that is read; the first thing that is wrong, not each."""
    global _said
    if not _said and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"[lepton] {text}", file=sys.stderr, flush=True)
    _said = True


_reporter: Optional[Reporter] = None
_looked = False


def _open() -> Optional[Reporter]:
    global _reporter, _looked
    _looked = True
    path = os.environ.get(names.REPORT_FILE)
    if path:
        try:
            with open(path, "r+b") as file:
                _reporter = Reporter(mmap.mmap(file.fileno(), s.SIZE))
        except (OSError, ValueError):
            _reporter = None
    return _reporter


def report(
    *,
    step: Optional[int] = None,
    loss: Any = None,
    samples: Optional[float] = None,
    tokens: Optional[float] = None,
    total_steps: Optional[int] = None,
    metrics: Optional[Mapping[str, Any]] = None,
    checkpoint: Optional[str] = None,
    checkpoint_step: Optional[int] = None,
) -> None:
    """Reports an optimiser step; every rank may call it, the lowest rank of each worker is read.

    step: the number of the step just made; a lower one than before (a resume) is fine. Without it each call counts as one step.
    loss: a float or a tensor of one element. One on a GPU is copied in the background and looked at a few times a second.
    samples, tokens: how many *this step* consumed, over *all* ranks of the job.
    total_steps: how many there will be: gives percent and ETA.
    metrics: other numbers, such as {"accuracy": 0.98}; a GPU tensor among them is waited for, so pass them seldom. At most 64 names.
    checkpoint: the path of a checkpoint that is now complete, holding the step last reported.
    checkpoint_step: the step that it holds, where training has gone on meanwhile.
    """
    try:
        reporter = _reporter if _looked else _open()
        if reporter is not None:
            reporter.report(step, loss, samples, tokens, total_steps, metrics, checkpoint, checkpoint_step)
    except Exception:
        return  # a number that could not be read must not end a training


def notice(reason: str, message: str) -> None:
    """Has the job's user read `message`: reasons that the operator knows (`CheckpointFailed`, ...) become events of the job.

    The newest of each reason is kept, four at most; a long message is cut.
    """
    try:
        reporter = _reporter if _looked else _open()
        if reporter is not None:
            reporter.notice(reason, message)
    except Exception:
        return


def should_stop() -> bool:
    """Whether to write a checkpoint and exit with 0 now; call it once per step, on every rank.

    It turns true at the same call on every rank, so no rank is left alone in a collective. A rank may wait in it, 2 s at most.
    """
    reporter = _reporter if _looked else _open()
    return reporter is not None and reporter.should_stop()


def checkpoint_dir() -> Optional[str]:
    """The folder for this job's checkpoints, shared by all workers; None where the job keeps none, or outside Lepton.

    Of a job with `evaluation` it is another one in each round. It is made where that is possible.
    """
    path = os.environ.get(names.CHECKPOINT_DIR) or None
    if path is not None:
        with contextlib.suppress(OSError):  # whoever writes there is told in the same words, and where
            os.makedirs(path, exist_ok=True)
    return path
