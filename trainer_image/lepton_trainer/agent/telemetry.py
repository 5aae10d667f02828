"""What the ranks of this worker have reported, over all generations of this agent: `Progress` for the coordinator, text for Prometheus.

Everything is read from the ranks' memory when somebody asks; nothing is done per step.
"""

import math
import re
import signal
import statistics
import time
from collections import deque
from contextlib import contextmanager
from typing import Any, Callable, Deque, Dict, Iterator, List, Optional, Pattern, Sequence, Tuple

from lepton_trainer.agent.settings import Settings
from lepton_trainer.protocol.messages import Notice, Progress
from lepton_trainer.protocol.patterns import LINE_LIMIT, number
from lepton_trainer.protocol.slot import BUCKET_COUNT, LARGEST, METRICS_LIMIT, NOTICES, SIZE, STEP_BUCKETS, SlotReader, Snapshot
from lepton_trainer.report import Reporter

RATE_WINDOW_SECONDS = 10.0
_LABEL = re.compile(r"[-\w./ ]{1,64}")
"""What a metric of report(metrics=...) may be called to be shown to Prometheus."""
SLOW_PATTERN_SECONDS = 0.05


class Meter:
    """Adds up the snapshots of one generation after the other."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._slots: Sequence[SlotReader] = ()
        self._logs: Optional[LogMatcher] = None
        self._generation = 0
        self._chosen: Optional[SlotReader] = None
        self._now = Snapshot()
        self._before = Progress()  # the totals of the generations that are over
        self._before_seconds = 0.0
        self._before_buckets = [0] * BUCKET_COUNT
        self._window: Deque[Tuple[float, float, float]] = deque()  # time, samples, tokens

    def begin(self, generation: int, slots: Sequence[SlotReader], logs: "Optional[LogMatcher]") -> None:
        """A new generation's ranks; the old ones' last words are added to the totals."""
        self.end()
        self._generation, self._slots, self._logs = generation, slots, logs

    def end(self) -> None:
        """The ranks are gone: what they reported is read once more and kept."""
        last = self._read()
        self._before = self._totals()
        self._before_seconds += last.seconds
        self._before_buckets = [a + b for a, b in zip(self._before_buckets, last.buckets)]
        self._slots, self._logs, self._chosen = (), None, None
        self._now = Snapshot()
        self._window.clear()

    def new_round(self) -> None:
        """Training begins anew: of what was reported only the counters still hold."""
        before = self._before
        self._before = Progress(
            samples_total=before.samples_total,
            tokens_total=before.tokens_total,
            steps_total=before.steps_total,
            nonfinite_total=before.nonfinite_total,
            reported=before.reported,
            notices=before.notices,
        )

    def _read(self) -> Snapshot:
        """The newest snapshot of the lowest rank that reports, else what the log patterns found."""
        if self._chosen is None:
            self._chosen = next((slot for slot in self._slots if slot.snapshot().reports), None)
        source = self._chosen or (self._logs.slot if self._logs is not None else None)
        if source is not None:
            self._now = source.snapshot()
        return self._now

    def _totals(self) -> Progress:
        before, now = self._before, self._now
        alive = now.reports > 0
        has_step = alive and now.step is not None
        return Progress(
            generation=self._generation,
            step=now.step if has_step else before.step,
            total_steps=now.total_steps if now.total_steps is not None else before.total_steps,
            loss=repr(now.loss) if now.loss is not None else before.loss,
            samples_total=before.samples_total + now.samples,
            tokens_total=before.tokens_total + now.tokens,
            steps_total=before.steps_total + now.steps,
            nonfinite_total=before.nonfinite_total + now.nonfinite,
            step_seconds=statistics.median(now.recent) if now.recent else before.step_seconds,
            checkpoint_step=now.checkpoint_step if now.checkpoint_step is not None else before.checkpoint_step,
            checkpoint_path=now.checkpoint or before.checkpoint_path,
            metrics=_newest(before.metrics, now.metrics),
            reported=before.reported or self._chosen is not None,
            notices=self._notices(),
        )

    def _notices(self) -> Tuple[Notice, ...]:
        """The newest of each reason, of this generation's ranks and of those before."""
        newest = {notice.reason: notice for notice in self._before.notices}
        for slot in self._slots:
            for index, reason, message in slot.notices():
                newest[reason] = Notice(self._generation, index, reason, message)
        return tuple(sorted(newest.values(), key=lambda notice: (notice.generation, notice.number))[-NOTICES:])

    def progress(self) -> Progress:
        """The levels and counters as of now."""
        snapshot = self._read()
        totals = self._totals()
        now = self._clock()
        samples, tokens = self._rates(snapshot, now)
        if self._chosen is None and self._logs is not None and self._logs.samples_per_second is not None:
            samples = self._logs.samples_per_second
        values = dict(vars(totals))
        values.update(
            samples_per_second=samples,
            tokens_per_second=tokens,
            first_step=snapshot.first_step,
            first_step_time=snapshot.first_time or None,
            step_age=max(0.0, now - snapshot.time) if snapshot.time else None,
        )
        return Progress(**values)

    def _rates(self, snapshot: Snapshot, now: float) -> Tuple[Optional[float], Optional[float]]:
        """Samples and tokens per second of the last ten seconds or so, between the moments of two reports; falling to 0 when steps stop."""
        if not snapshot.time:
            return None, None
        window = self._window
        if not window:
            window.append((snapshot.first_time, 0.0, 0.0))
        if snapshot.time > window[-1][0]:
            window.append((snapshot.time, snapshot.samples, snapshot.tokens))
        while len(window) > 2 and window[1][0] < snapshot.time - RATE_WINDOW_SECONDS:
            window.popleft()
        start, samples, tokens = window[0]
        usual = statistics.median(snapshot.recent) if snapshot.recent else 0.0
        end = snapshot.time if now - snapshot.time < max(2.0, 3 * usual) else now
        if end <= start:
            return None, None
        return (
            (snapshot.samples - samples) / (end - start) if snapshot.samples else None,
            (snapshot.tokens - tokens) / (end - start) if snapshot.tokens else None,
        )

    def histogram(self) -> Tuple[List[int], float, int]:
        """(cumulative counts per bound of `STEP_BUCKETS` and infinity, sum of seconds, count)."""
        now = self._now
        counts = [a + b for a, b in zip(self._before_buckets, now.buckets)][: len(STEP_BUCKETS) + 1]
        cumulative, total = [], 0
        for count in counts:
            total += count
            cumulative.append(total)
        return cumulative, self._before_seconds + now.seconds, total


def _newest(before: Dict[str, str], now: Dict[str, str]) -> Dict[str, str]:
    """Of the metrics of all generations those reported last: a script may find new names in each, and a message has its limits."""
    both = {**{name: value for name, value in before.items() if name not in now}, **now}
    return dict(list(both.items())[-METRICS_LIMIT:])


class LogMatcher:
    """`metrics.fromLogs`: numbers out of the lines of the lowest rank, kept as if the rank had reported them.

    `samples` and `tokens` are those since the line before. A line without a step belongs to the last one where a pattern for steps exists.
    """

    def __init__(self, patterns: Sequence[Tuple[str, Pattern[str]]], log: Callable[[str], None]) -> None:
        buffer = bytearray(SIZE)
        self.slot = SlotReader(buffer)
        self.samples_per_second: Optional[float] = None
        self._reporter = Reporter(buffer)
        self._patterns = list(patterns)
        self._log = log
        self._has_step = any(name == "step" for name, _ in patterns)
        self._step: Optional[int] = None
        self._early: Dict[str, float] = {}

    def line(self, text: str) -> None:
        found = self._search(text[:LINE_LIMIT])
        if not found:
            return
        self.samples_per_second = found.pop("samples_per_second", self.samples_per_second)
        if self._has_step:
            self._step = int(found.pop("step")) if math.isfinite(found.get("step", math.nan)) else self._step
            if self._step is None:
                self._early.update(found)
                return
            found, self._early = {**self._early, **found}, {}
        total = found.get("total_steps", math.nan)
        self._reporter.report(
            step=self._step,
            loss=found.get("loss"),
            samples=found.get("samples"),
            tokens=found.get("tokens"),
            total_steps=int(total) if math.isfinite(total) else None,
        )

    def _search(self, text: str) -> Dict[str, float]:
        found: Dict[str, float] = {}
        for name, pattern in list(self._patterns):
            try:
                with _interrupted(SLOW_PATTERN_SECONDS):
                    match = pattern.search(text)
            except _TooSlow:
                self._patterns.remove((name, pattern))
                self._log(
                    f"metrics.fromLogs: the pattern for {name} takes over {SLOW_PATTERN_SECONDS:g} s on a line of {len(text)} characters: "
                    "not used any more; write it with fewer repeats"
                )
                continue
            value = number(match) if match is not None else None
            if value is not None and (name == "loss" or abs(value) < LARGEST):
                found[name] = value
        return found


class _TooSlow(Exception):
    """A search took too long."""


@contextmanager
def _interrupted(seconds: float) -> Iterator[None]:
    """Raises `_TooSlow` in the block after `seconds`; `re` looks for signals while it backtracks. Main thread only."""

    def interrupt(*_: Any) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(name: str, labels: str, value: float) -> str:
    if math.isnan(value):
        text = "NaN"
    elif math.isinf(value):
        text = "+Inf" if value > 0 else "-Inf"
    else:
        text = repr(float(value))
    return f"{name}{{{labels}}} {text}\n"


def exposition(settings: Settings, meter: Meter, up: Sequence[int], starts: Dict[str, int]) -> str:
    """The text that Prometheus scrapes. `up`: the ranks that live; `starts`: how many were started, by kind (warm, cold)."""
    progress = meter.progress()
    labels = ",".join(
        f'{name}="{value}"'
        for name, value in (("namespace", settings.namespace), ("job_name", settings.job_name), ("worker", settings.worker))
    )
    parts: List[str] = []

    def add(name: str, kind: str, text: str, values: Sequence[Tuple[str, str, Optional[float]]]) -> None:
        lines = [_line(f"lepton_train_{name}{suffix}", labels + extra, value) for suffix, extra, value in values if value is not None]
        if lines:
            parts.append(f"# HELP lepton_train_{name} {text}\n# TYPE lepton_train_{name} {kind}\n" + "".join(lines))

    loss = float(progress.loss) if progress.loss is not None else None
    add("loss", "gauge", "Loss of the last reported step.", [("", "", loss)])
    add("step", "gauge", "Number of the last reported step.", [("", "", progress.step)])
    add("steps_total", "counter", "Optimiser steps made, those made again after a failure included.", [("", "", progress.steps_total)])
    add("samples_total", "counter", "Samples consumed by all ranks of the job.", [("", "", progress.samples_total)])
    add("tokens_total", "counter", "Tokens consumed by all ranks of the job.", [("", "", progress.tokens_total)])
    add("nonfinite_loss_total", "counter", "Reported losses that were NaN or infinite.", [("", "", progress.nonfinite_total)])
    add("samples_per_second", "gauge", "Samples per second over the last ten seconds.", [("", "", progress.samples_per_second)])
    add("tokens_per_second", "gauge", "Tokens per second over the last ten seconds.", [("", "", progress.tokens_per_second)])
    cumulative, seconds, count = meter.histogram()
    bounds = [repr(bound) for bound in STEP_BUCKETS] + ["+Inf"]
    buckets: List[Tuple[str, str, Optional[float]]] = [("_bucket", f',le="{bound}"', number) for bound, number in zip(bounds, cumulative)]
    add("step_seconds", "histogram", "Time between the ends of two steps.", [*buckets, ("_sum", "", seconds), ("_count", "", count)])
    reported = [("", f',name="{name}"', float(value)) for name, value in sorted(progress.metrics.items()) if _LABEL.fullmatch(name)]
    add("metric", "gauge", "What the script reported under this name.", reported)
    add("process_up", "gauge", "1 for every rank of this worker that runs.", [("", f',rank="{rank}"', 1) for rank in up])
    add(
        "process_starts_total",
        "counter",
        "Ranks started on this worker: forked from the warm parent, or cold.",
        [("", f',kind="{kind}"', count) for kind, count in starts.items()],
    )
    return "".join(parts)
