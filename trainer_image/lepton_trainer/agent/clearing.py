"""Killing what descends from the agent, and waiting until it is gone: nothing but the warm parent outlives a generation.

Whether something has to end, the supervisor decides.
"""

import asyncio
import os
import signal
import time
from typing import Callable, Optional

from lepton_trainer.agent import processes
from lepton_trainer.agent.group import Group
from lepton_trainer.agent.warm.client import WarmParent

NAMED_SECONDS = 10.0
"""A process that SIGKILL has not ended after so long is told of."""
POLL_SECONDS = 0.02


class Clearing:
    def __init__(self, warm: Optional[WarmParent]) -> None:
        self._warm = warm
        self._reaped = asyncio.Event()

    def reaped(self) -> None:
        """Some processes have ended."""
        self._reaped.set()

    def kill(self, group: Optional[Group]) -> None:
        """SIGKILL to all that descends from us but the warm parent; it is over when `emptied` returns."""
        if group is not None:
            group.kill()
        if self._warm is not None:
            self._warm.close_store()
        self.kill_leftovers()

    def kill_leftovers(self, keep_store: bool = False) -> bool:
        """SIGKILL to what is neither the warm parent nor, with `keep_store`, the store; whether there was anything."""
        spared = {self._warm.pid, self._warm.store_pid if keep_store else 0} if self._warm is not None else set()
        rest = processes.descendants([os.getpid()]) - spared
        processes.send(rest, signal.SIGKILL)
        return bool(rest)

    async def emptied(self, group: Optional[Group], stuck: Callable[[], None], seconds: float = float("inf")) -> bool:
        """Waits until nothing descends from us but the warm parent, `seconds` at most; calls `stuck` once where SIGKILL does not help."""
        start = time.monotonic()
        said = False
        while self.kill_leftovers() or (group is not None and group.living):
            await self._next_reaped(POLL_SECONDS)
            waited = time.monotonic() - start
            if waited > seconds:
                return False
            if not said and waited > NAMED_SECONDS:
                said = True
                stuck()
        return True

    async def ended(self, group: Group, seconds: float, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Waits until all ranks of `group` have ended by themselves, `seconds` at most, or until `given_up`; whether they have."""
        deadline = time.monotonic() + seconds
        while group.living and time.monotonic() < deadline and not given_up():
            await self._next_reaped(min(0.1, deadline - time.monotonic()))
        return not group.living

    async def _next_reaped(self, seconds: float) -> None:
        self._reaped.clear()
        try:
            await asyncio.wait_for(self._reaped.wait(), max(0.001, seconds))
        except asyncio.TimeoutError:
            return
