"""The batches of one process, prepared a little ahead by a thread while the model computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lepton_trainer.train.data.order import Int64s, Order, share
from lepton_trainer.train.tasks import Task

ORDERED = 1024
"""Positions whose samples are looked up at once."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's share of the samples at positions [start, stop) of the stream: `count` = stop - start of them are everyone's."""

    start: int
    stop: int
    epochs: Int64s
    indices: Int64s
    inputs: Tensor
    targets: Tensor

    @property
    def count(self) -> int:
        return self.stop - self.start


class Feed:
    """Iterate over the global batches from position `start` to `end`; the last one may be smaller.

    `waited` counts the seconds in which the consumer had to wait for data.
    """

    def __init__(self, task: Task, seed: int, start: int, end: int, global_batch: int, rank: int, world: int, ahead: int = 2) -> None:
        self.task, self.order = task, Order(seed, task.size)
        self.start, self.end, self.global_batch = start, end, global_batch
        self.rank, self.world = rank, world
        self.waited = 0.0
        self._pin = torch.cuda.is_available()
        self._queue: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=ahead)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="feed", daemon=True)

    def __iter__(self) -> Iterator[Batch]:
        self._thread.start()
        while True:
            begun = time.perf_counter()
            item = self._queue.get()
            self.waited += time.perf_counter() - begun
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def close(self) -> None:
        """Stop preparing; safe to call at any time."""
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue

    def _batches(self, starts: range) -> Iterator[Batch]:
        """This process's shares of the global batches that begin at `starts`, looked up together and made one after the other."""
        bounds = [(start, min(start + self.global_batch, self.end)) for start in starts]
        shares = [share(start, stop, self.rank, self.world) for start, stop in bounds]
        epochs, indices = self.order.where(np.concatenate([np.arange(*mine, dtype=np.int64) for mine in shares]))
        done = 0
        for (start, stop), (first, last) in zip(bounds, shares, strict=True):
            mine = slice(done, done + last - first)
            done = mine.stop
            inputs, targets = self.task.batch(epochs[mine], indices[mine])
            if self._pin:
                inputs, targets = inputs.pin_memory(), targets.pin_memory()
            yield Batch(start, stop, epochs[mine], indices[mine], inputs, targets)

    def _produce(self) -> None:
        try:
            starts = range(self.start, self.end, self.global_batch)
            together = max(1, ORDERED * self.world // self.global_batch)
            for at in range(0, len(starts), together):
                for batch in self._batches(starts[at : at + together]):
                    if self._closed.is_set():
                        return
                    self._queue.put(batch)
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)
