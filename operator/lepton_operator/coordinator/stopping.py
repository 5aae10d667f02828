"""The rounds of a coordinated stop, so that `should_stop()` turns true after the same call on every rank. Pure.

A call ahead of the fastest rank is proposed; every member arms it, or says that it has passed it and the call moves further ahead; once
all have armed it, it is committed. A rank that reached an armed call and waited too long refuses that proposal: the next one has another
number, so a late word about a dead proposal is never obeyed. One gap is left, as in every two-phase commit: a refusal on its way while the
last member arms. The commit is then obeyed by some ranks only, and the generation ends as one whose processes failed.
"""

from collections.abc import Sequence

from lepton_trainer.protocol.messages import RUNNING, State, StopOrder

FIRST_MARGIN = 2
"""Calls by which the first proposal leads the fastest rank; doubled whenever a rank had passed the call before it was armed."""
LARGEST_MARGIN = 1024


class StopRounds:
    """Of one generation. `order` is what every member should be told now."""

    __slots__ = ("_margin", "_proposal", "order")

    def __init__(self) -> None:
        self.order: StopOrder | None = None
        self._proposal = 0
        self._margin = FIRST_MARGIN

    def update(self, wanted: bool, generation: int, members: Sequence[State | None]) -> bool:
        """Looks at the newest states of all members (None: not connected) and moves on; True when `order` changed."""
        before = self.order
        if self.order is None or not self.order.committed:
            self._step(wanted, generation, members)
        return self.order != before

    def _step(self, wanted: bool, generation: int, members: Sequence[State | None]) -> None:
        states = [state for state in members if state is not None]
        if not wanted or not all(_stoppable(state, generation) for state in states):
            self.order = None
            return
        if len(states) < len(members) or not states:
            return  # who is away cannot arm; what is proposed stays until it is back
        replies = [state.stop for state in states if state.stop is not None]
        self._proposal = max([self._proposal, *(reply.proposal for reply in replies)])
        calls = max((reply.calls for reply in replies), default=0)
        order = self.order
        if order is None:
            self._propose(calls)
            return
        current = [reply for reply in replies if reply.proposal == order.proposal]
        if any(reply.refused or (not reply.armed and reply.calls >= order.call) for reply in current):
            self._margin = min(2 * self._margin, LARGEST_MARGIN)
            self._propose(calls)
        elif len(current) == len(members) and all(reply.armed for reply in current):
            self.order = StopOrder(order.proposal, order.call, committed=True)

    def _propose(self, calls: int) -> None:
        self._proposal += 1
        self.order = StopOrder(self._proposal, calls + self._margin)


def _stoppable(state: State, generation: int) -> bool:
    return state.generation == generation and state.phase == RUNNING and state.can_stop and (state.stop is None or state.stop.can_stop)
