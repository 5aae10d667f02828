"""Tells users what happened, in events.k8s.io/v1, without flooding them or the API server.

Of one reason of one job at most one write is made per minute, with growing gaps while it goes on: the first at once, of those that follow
in between the newest when the time has come. The same sentence again becomes a series of the same Event, not another one.
"""

import asyncio
import logging
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


@dataclass(slots=True)
class _Series:
    """What was told of one reason of one job. `written` and `gap` are in monotonic seconds."""

    name: str = ""
    message: str = ""
    count: int = 0  # times that `message` was to be told, the unwritten ones included
    written: float = float("-inf")
    gap: float = 0.0
    waiting: tuple[Job, Event] | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Recorder:
    """Writes Events in the background of its callers; a lost one is logged, never raised."""

    def __init__(self, api: Api, instance: str) -> None:
        self._api = api
        self._instance = instance
        self._series: dict[tuple[str, str], _Series] = {}

    async def emit(self, job: Job, event: Event) -> None:
        key = (job.uid, event.reason)
        series = self._series.setdefault(key, _Series())
        now = time.monotonic()
        if now - series.written > 2 * series.gap:
            series.gap = FIRST_GAP
        if event.message == series.message:
            series.count += 1
        if series.task is not None or now - series.written < series.gap:
            series.waiting = (job, event)
            if series.task is None:
                wait = series.written + series.gap - now
                series.task = asyncio.create_task(self._later(series, wait), name=f"event {event.reason} of {job.key}")
            return
        await self._write(series, job, event)
        self._prune(now)

    async def _later(self, series: _Series, seconds: float) -> None:
        await asyncio.sleep(seconds)
        series.task = None
        if series.waiting is not None:
            job, event = series.waiting
            series.waiting = None
            series.gap = min(LONGEST_GAP, series.gap * 2)
            await self._write(series, job, event)

    async def _write(self, series: _Series, job: Job, event: Event) -> None:
        """Counts as the write of its gap even when it fails: a server that refuses is not asked more often."""
        series.written = time.monotonic()
        base = f"/apis/events.k8s.io/v1/namespaces/{job.namespace}/events"
        try:
            if event.message == series.message and series.name:
                observed = {"series": {"count": series.count, "lastObservedTime": format_micro_time(time.time())}}
                try:
                    await self._api.request(
                        "patch", "events", f"{base}/{series.name}", body=observed, content_type="application/merge-patch+json"
                    )
                    return
                except Gone:
                    pass  # it outlived the cluster's time to live: tell it anew
            series.name, series.message, series.count = f"{job.name}.{secrets.token_hex(8)}", event.message, 1
            body = build_event(job, event, series.name, self._instance, time.time())
            await self._api.request("create", "events", base, body=body)
        except (AlreadyExists, Conflict, Gone, Rejected, Unavailable) as error:
            log.warning("an event could not be written: %s: %s: %s", event.reason, event.message, error, extra={"job": job.key})

    def _prune(self, now: float) -> None:
        if len(self._series) % 64 == 0:
            for key, series in list(self._series.items()):
                if series.task is None and now - series.written > FORGET_SECONDS:
                    del self._series[key]
