"""Micro-batching: what waits while a batch is computed is the next batch. Nobody is made to wait for others to come."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lepton_trainer.train.serving.models import Served

WAITING = 4096
"""Instances that may wait; more are turned away."""


class Full(Exception):
    """Too much waits already."""


class Batcher:
    """Collects requests on the event loop and computes in one thread of its own.

    Args:
        computed: told the instances of each batch.
    """

    def __init__(self, computed: Callable[[int], None]) -> None:
        self._computed = computed
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="predict")
        self._waiting: deque[tuple[Served, Sequence[Any], asyncio.Future[list[dict[str, Any]]]]] = deque()
        self._busy = False
        self.waiting = 0

    async def predict(self, served: Served, items: Sequence[Any]) -> list[dict[str, Any]]:
        """The predictions for one request's items.

        Raises:
            Full: nothing more is taken now.
        """
        if self.waiting and self.waiting + len(items) > WAITING:
            raise Full
        answer: asyncio.Future[list[dict[str, Any]]] = asyncio.get_running_loop().create_future()
        self._waiting.append((served, items, answer))
        self.waiting += len(items)
        if not self._busy:
            self._next()
        return await answer

    def _next(self) -> None:
        """Send the next batch to the thread: requests of one model in the order they came, up to its limit, at least one."""
        if not self._waiting:
            self._busy = False
            return
        self._busy = True
        served = self._waiting[0][0]
        batch: list[Any] = []
        parts: list[tuple[int, asyncio.Future[list[dict[str, Any]]]]] = []
        while self._waiting and self._waiting[0][0] is served:
            _, items, answer = self._waiting[0]
            if batch and len(batch) + len(items) > served.adapter.limit:
                break
            self._waiting.popleft()
            batch.extend(items)
            parts.append((len(items), answer))
        self.waiting -= len(batch)
        self._computed(len(batch))
        running = asyncio.get_running_loop().run_in_executor(self._thread, served.answer, batch)
        running.add_done_callback(lambda done: self._finish(parts, done))

    def _finish(self, parts: list[tuple[int, asyncio.Future[list[dict[str, Any]]]]], done: asyncio.Future[list[dict[str, Any]]]) -> None:
        self._next()  # first, so that the thread has work while the answers are written
        error = done.exception()
        at = 0
        for count, answer in parts:
            if not answer.done():  # a client may have gone
                if error is not None:
                    answer.set_exception(error)
                else:
                    answer.set_result(done.result()[at : at + count])
            at += count

    def close(self) -> None:
        self._thread.shutdown(wait=True)
