"""Which order each agent of a job should be following right now. Pure: told what happened, asked what to say.

Two steps start generation N: members are told to prepare it; when the agent of group rank 0 has its store open and reports the port, every
member is told to start. Nothing here is remembered that the operator's `GroupOrder` and the agents' states do not say again, so a
coordinator that restarts in the middle goes on by itself.
"""

from lepton_operator.coordinator.stopping import StopRounds
from lepton_operator.worker import GroupOrder
from lepton_trainer.protocol.messages import Order, State

Key = tuple[str, str]
"""(worker uid, boot)"""


class JobDelivery:
    """`settle()` after any change; changes come in bursts (a whole group acknowledges at once), so they are gathered before it."""

    __slots__ = ("_master", "_members", "_port", "_states", "_stop", "group")

    def __init__(self, group: GroupOrder) -> None:
        self._states: dict[Key, State] = {}
        self._port = 0
        self._stop = StopRounds()
        self._seat(group)

    def set_group(self, group: GroupOrder) -> None:
        if group.number != self.group.number or group.digest != self.group.digest:
            self._port = 0
            self._stop = StopRounds()
        self._seat(group)

    def _seat(self, group: GroupOrder) -> None:
        self.group = group
        self._members = {(member.uid, member.boot): member for member in group.members}
        self._master = next((key for key, member in self._members.items() if member.group_rank == 0), None)

    def heard(self, key: Key, state: State) -> bool:
        """A join (a new connection's state counts whatever came before) or a state; the caller has dropped what came out of order.

        True when this may change somebody's orders: then `settle()` is due."""
        self._states[key] = state
        return key in self._members and (self._port == 0 or self._stopping)

    def dropped(self, key: Key) -> None:
        self._states.pop(key, None)

    @property
    def _stopping(self) -> bool:
        return self.group.stop_requested or self._stop.order is not None

    def settle(self) -> bool:
        """Draws the conclusions from all that was heard; True when orders changed by them."""
        port = self._port or self._store_port()
        changed = port != self._port
        self._port = port
        if self._stopping:
            states = [self._states.get(key) for key in self._members]
            changed |= self._stop.update(self.group.stop_requested, self.group.number, states)
        return changed

    def _store_port(self) -> int:
        state = self._states.get(self._master) if self._master else None
        return state.store_port if state is not None and state.generation == self.group.number else 0

    def order(self, key: Key) -> Order:
        """The whole order for one agent, with seq 0: the connection numbers what it sends."""
        group = self.group
        verdict = group.shutdown.get(key[0], "")
        grace = group.grace_seconds if verdict else 0.0
        member = self._members.get(key)
        if member is None:
            return Order(seq=0, shutdown=verdict, grace_seconds=grace)
        return Order(
            seq=0,
            generation=group.number,
            group_rank=member.group_rank,
            group_size=len(group.members),
            rank_offset=member.rank_offset,
            world_size=group.world_size,
            master_host=group.master_host,
            master_port=self._port,
            digest=group.digest,
            restarts=group.restarts,
            max_restarts=group.max_restarts,
            round=group.round,
            env=group.env,
            args=group.args,
            stop=self._stop.order,
            shutdown=verdict,
            grace_seconds=grace,
        )
