"""Which job to look at next: a key waits at most once, is worked on by one worker at a time, and comes back later with growing patience.

An add while the key is being worked on makes it come again right after, so no change is lost and nothing runs twice at once.
"""

import asyncio
import heapq
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

FIRST_BACKOFF = 0.05
LONGEST_BACKOFF = 60.0
SPARE_TIMERS = 64


class WorkQueue:
    """Times are seconds of the running loop's clock. All methods belong to the loop's thread."""

    def __init__(self) -> None:
        self._ready: deque[str] = deque()
        self._queued: dict[str, float] = {}  # key -> when it became ready
        self._active: set[str] = set()
        self._again: set[str] = set()
        self._due: dict[str, float] = {}  # the earliest time at which a key shall be added
        self._heap: list[tuple[float, int, str]] = []
        self._count = itertools.count()
        self._failures: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._timer_wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._queued)

    def add(self, key: str) -> None:
        if key in self._active:
            self._again.add(key)
        elif key not in self._queued:
            self._queued[key] = _now()
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: str, seconds: float) -> None:
        """Adds the key later; of several times the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = _now() + seconds
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        heapq.heappush(self._heap, (due, next(self._count), key))
        if len(self._heap) > 2 * len(self._due) + SPARE_TIMERS:  # most were overtaken by something earlier
            self._heap = [(due, next(self._count), key) for key, due in self._due.items()]
            heapq.heapify(self._heap)
        self._timer_wake.set()

    def add_failed(self, key: str) -> float:
        """Adds the key after its own back-off, which doubles with each failure in a row; the seconds it will take."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures, 20))
        self.add_after(key, seconds)
        return seconds

    def succeeded(self, key: str) -> None:
        self._failures.pop(key, None)

    def forget(self, key: str) -> None:
        """The job is gone: nothing of it is remembered. A key that is being worked on is forgotten when that ends."""
        self._failures.pop(key, None)
        self._due.pop(key, None)

    async def run(
        self, workers: int, work: Callable[[str], Awaitable[float | None]], waited: Callable[[float], None] = lambda seconds: None
    ) -> None:
        """Works until cancelled. `work` returns the seconds until its key is due again, or None; its exceptions are back-offs.

        `waited` is told for how long each key had been ready."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._timer(), name="workqueue timer")
            for number in range(workers):
                group.create_task(self._worker(work, waited), name=f"workqueue {number}")

    async def _worker(self, work: Callable[[str], Awaitable[float | None]], waited: Callable[[float], None]) -> None:
        while True:
            while not self._ready:
                self._wake.clear()
                await self._wake.wait()
            key = self._ready.popleft()
            waited(_now() - self._queued.pop(key))
            self._active.add(key)
            self._due.pop(key, None)  # whatever it was to come back for is looked at now
            try:
                again = await work(key)
                self.succeeded(key)
            except Exception:
                log.exception("looking at %s failed, trying again in %.2f s", key, self.add_failed(key), extra={"job": key})
                again = None
            finally:
                self._active.discard(key)
                if key in self._again:
                    self._again.discard(key)
                    self.add(key)
            if again is not None:
                self.add_after(key, again)

    async def _timer(self) -> None:
        while True:
            while self._heap and self._heap[0][0] <= _now():
                due, _, key = heapq.heappop(self._heap)
                if self._due.get(key) == due:
                    del self._due[key]
                    self.add(key)
            self._timer_wake.clear()
            try:
                async with asyncio.timeout(max(0.0, self._heap[0][0] - _now()) if self._heap else None):
                    await self._timer_wake.wait()
            except TimeoutError:
                continue


def _now() -> float:
    return asyncio.get_running_loop().time()
