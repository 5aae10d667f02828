"""Tells users what happened, in events.k8s.io/v1, without flooding them or the API server.

Of one reason of one job at most one write is made per minute, with growing gaps while it goes on: the first at once, of those that follow
in between the newest when the time has come. The same sentence again becomes a series of the same Event, not another one. A write that
found no answer is tried again for a while, with growing pauses; what comes in meanwhile takes its place or is counted.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from dataclasses import dataclass, field

from lepton_operator.job import Job, format_micro_time
from lepton_operator.pods.api import AlreadyExists, Api
from lepton_operator.pods.manifests import build_event
from lepton_operator.substrate import Conflict, Event, Gone, Rejected, Unavailable

log = logging.getLogger(__name__)

FIRST_GAP = 60.0
LONGEST_GAP = 960.0
FORGET_SECONDS = 3600.0
RETRY_SECONDS = 1.0
"""The pause after the first write that found no answer (busy, away); each pause is twice as long, up to `LONGEST_RETRY`."""
LONGEST_RETRY = 60.0
GIVE_UP_SECONDS = 900.0
"""News so old is given up: the API server forgets its Events within an hour anyway."""


@dataclass(slots=True)
class _Series:
    """What was told of one reason of one job. `written` and `gap` are in monotonic seconds."""

    name: str = ""  # of the Event that says `message`, chosen once and kept over retries
    made: bool = False  # that Event is known to exist
    message: str = ""
    count: int = 0  # times that `message` was to be told, the unwritten ones included
    written: float = float("-inf")
    gap: float = 0.0
    failures: int = 0  # in a row
    failing_since: float = 0.0
    waiting: tuple[Job, Event] | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)  # that waits, and writes then


class Recorder:
    """Writes Events in the background of its callers; a lost one is logged, never raised."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api = api
        self._instance = instance
        self._series: dict[tuple[str, str], _Series] = {}

    async def emit(self, job: Job, event: Event) -> None:
        """Returns after one write at most: what fails is tried again by a task of its own."""
        series = self._series.setdefault((job.uid, event.reason), _Series())
        now = time.monotonic()
        if now - series.written > 2 * series.gap:
            series.gap = FIRST_GAP
        if event.message == series.message:
            series.count += 1
        if series.task is not None or now - series.written < series.gap:
            series.waiting = (job, event)
            if series.task is None:
                self._wait(series, series.written + series.gap - now)
            return
        await self._write(series, job, event)
        self._prune(now)

    def _wait(self, series: _Series, seconds: float) -> None:
        if series.task is not None:
            series.task.cancel()
        series.task = asyncio.create_task(self._later(series, seconds), name="event")

    async def _later(self, series: _Series, seconds: float) -> None:
        await asyncio.sleep(seconds)
        series.task = None
        if series.waiting is not None:
            job, event = series.waiting
            series.waiting = None
            if not series.failures:
                series.gap = min(LONGEST_GAP, series.gap * 2)
            await self._write(series, job, event)

    async def _write(self, series: _Series, job: Job, event: Event) -> None:
        """Counts as the write of its gap even when it fails: a server that refuses is not asked more often."""
        series.written = time.monotonic()
        try:
            await self._put(series, job, event)
            series.failures = 0
        except Unavailable as error:
            self._try_again(series, job, event, error)
        except (AlreadyExists, Conflict, Gone, Rejected) as error:
            series.failures = 0
            self._lost(job, event, error)

    async def _put(self, series: _Series, job: Job, event: Event) -> None:
        base = f"/apis/events.k8s.io/v1/namespaces/{job.namespace}/events"
        if event.message != series.message or not series.name:
            series.name, series.made, series.message, series.count = f"{job.name}.{secrets.token_hex(8)}", False, event.message, 1
        if not series.made:
            body = build_event(job, event, series.name, self._instance, time.time())
            with contextlib.suppress(AlreadyExists):  # an earlier try arrived, its answer did not
                await self._api.request("create", "events", base, body=body)
            series.made = True
            return
        observed = {"series": {"count": series.count, "lastObservedTime": format_micro_time(time.time())}}
        try:
            await self._api.request("patch", "events", f"{base}/{series.name}", body=observed, content_type="application/merge-patch+json")
        except Gone:  # it outlived the cluster's time to live: tell it anew
            series.name = ""
            await self._put(series, job, event)

    def _try_again(self, series: _Series, job: Job, event: Event, error: Unavailable) -> None:
        now = time.monotonic()
        if not series.failures:
            series.failing_since = now
        series.failures += 1
        if now - series.failing_since > GIVE_UP_SECONDS:
            self._lost(job, event, error)
            series.failing_since = now  # what has come in meanwhile is news
            if series.waiting is None:
                series.failures = 0
                return
        elif series.waiting is None:
            series.waiting = (job, event)
        pause = min(LONGEST_RETRY, RETRY_SECONDS * 2.0 ** min(series.failures - 1, 10))
        self._wait(series, min(LONGEST_RETRY, max(error.retry_after, random.uniform(0.5, 1.0) * pause)))

    def _lost(self, job: Job, event: Event, error: Exception) -> None:
        log.warning("an event could not be written: %s: %s: %s", event.reason, event.message, error, extra={"job": job.key})

    def _prune(self, now: float) -> None:
        if len(self._series) % 64 == 0:
            for key, series in list(self._series.items()):
                if series.task is None and now - series.written > FORGET_SECONDS:
                    del self._series[key]
