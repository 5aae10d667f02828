"""The batches of one process, prepared a little ahead by a thread while the model computes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lepton_trainer.train.data.order import Int64s, Order, share
from lepton_trainer.train.tasks import Task


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

    def batch(self, start: int, stop: int) -> Batch:
        """This process's share of the positions [start, stop)."""
        first, last = share(start, stop, self.rank, self.world)
        epochs, indices = self.order.at(first, last)
        inputs, targets = self.task.batch(epochs, indices)
        if self._pin:
            inputs, targets = inputs.pin_memory(), targets.pin_memory()
        return Batch(start, stop, epochs, indices, inputs, targets)

    def _produce(self) -> None:
        try:
            for start in range(self.start, self.end, self.global_batch):
                if self._closed.is_set():
                    return
                self._queue.put(self.batch(start, min(start + self.global_batch, self.end)))
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)
