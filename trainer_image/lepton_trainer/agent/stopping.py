"""Stopping together: hands a proposed stop on to the ranks' slots and tells how they stand towards it.

Where and when to stop, the coordinator decides; how a rank arms and waits, `report.should_stop` does.
"""

import asyncio
from typing import Any, Callable, Coroutine, Optional

from lepton_trainer.agent.group import Group
from lepton_trainer.protocol import messages as m
from lepton_trainer.protocol.slot import ARMED, CALLS, PROPOSAL_MASK, REFUSED

POLL_SECONDS = 0.005

Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


class Stopping:
    """`reply` and `could_stop` are what the agent's State says; both belong to one generation (`begin`)."""

    def __init__(self, tell: Callable[[], None], spawn: Spawn) -> None:
        self.reply: Optional[m.StopReply] = None
        self.could_stop = False
        self._tell = tell
        self._spawn = spawn
        self._group: Optional[Group] = None
        self._stop: Optional[m.StopOrder] = None
        self._polling: "Optional[asyncio.Task[None]]" = None

    def begin(self, group: Optional[Group]) -> None:
        """The ranks that are asked from now on; None: the older ones are gone."""
        self._group, self._stop, self.reply, self.could_stop = group, None, None, False

    def look(self) -> None:
        """Tells once every rank has called should_stop() for the first time."""
        if self._group is not None and self._group.can_stop != self.could_stop:
            self.could_stop = self._group.can_stop
            self._tell()

    def follow(self, stop: Optional[m.StopOrder]) -> None:
        if self._group is None:
            return
        self._stop = stop
        if stop is None:
            for rank in self._group.ranks:
                rank.slot.offer(0, 0, False)
            self.reply = None
            return
        for rank in self._group.ranks:
            rank.slot.offer(stop.proposal, stop.call, stop.committed)
        if stop.committed:
            self._group.stop_committed = True
        if self._polling is None or self._polling.done():
            self._polling = self._spawn(self._watch())

    async def _watch(self) -> None:
        """While a stop is proposed: tells whenever a rank arms, passes or refuses it."""
        while self._group is not None and self._group.living and self._stop is not None:
            stop, before = self._stop, self.reply
            reply = self._ask(self._group, stop)
            passed = not reply.armed and reply.calls >= stop.call
            if before is None or _stance(before) != _stance(reply) or (passed and before.calls < stop.call):
                self.reply = reply
                self._tell()
            await asyncio.sleep(POLL_SECONDS)

    def _ask(self, group: Group, stop: m.StopOrder) -> m.StopReply:
        proposal = stop.proposal & PROPOSAL_MASK
        return m.StopReply(
            proposal=stop.proposal,
            armed=all(rank.slot.words[ARMED] == proposal for rank in group.ranks),
            calls=max(rank.slot.words[CALLS] for rank in group.ranks),
            refused=any(rank.slot.words[REFUSED] == proposal for rank in group.ranks),
            can_stop=group.can_stop,
        )


def _stance(reply: m.StopReply) -> "tuple[int, bool, bool, bool]":
    return reply.proposal, reply.armed, reply.refused, reply.can_stop
