"""A generation: a number, an ordered list of members and a master. Made here, told to nobody here.

Members are ordered by worker index; rank 0 is the lowest living index, so its worker is the master. Numbers only rise: the next one exceeds
what status holds and what any agent has seen (an etcd that was restored may have forgotten some).
"""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from lepton_operator.worker import Agent, Member, MemberOrder, Worker
from lepton_trainer.protocol import messages


@dataclass(frozen=True, slots=True)
class Generation:
    number: int
    members: tuple[Member, ...]
    recorded: str = ""  # the digest on record, where it cannot be computed: a member that has ended does not tell its boot any more

    @property
    def size(self) -> int:
        return len(self.members)

    @property
    def world_size(self) -> int:
        return sum(member.procs for member in self.members)

    @property
    def master(self) -> Member:
        return self.members[0]

    @property
    def digest(self) -> str:
        """Of number and members, 16 hexadecimal digits: how a new leader knows that what the agents report is all of it."""
        if self.recorded:
            return self.recorded
        text = "|".join([str(self.number), *(f"{m.worker}:{m.uid}:{m.boot}:{m.procs}" for m in self.members)])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def orders(self) -> tuple[MemberOrder, ...]:
        """Each member's place: its group rank and the rank of its first process."""
        placed: list[MemberOrder] = []
        offset = 0
        for position, member in enumerate(self.members):
            placed.append(MemberOrder(member.uid, member.boot, member.worker, position, offset))
            offset += member.procs
        return tuple(placed)


def member_of(agent: Agent) -> Member:
    return Member(worker=agent.worker, uid=agent.uid, boot=agent.boot, procs=agent.procs, host=agent.host)


def form(number: int, agents: Iterable[Agent]) -> Generation:
    """Generation `number` of these agents, at most one per worker index. Raises `ValueError` on two of one index, or none at all."""
    members = tuple(sorted((member_of(agent) for agent in agents), key=lambda member: member.worker))
    if not members:
        raise ValueError("a generation needs at least one member")
    if len({member.worker for member in members}) != len(members):
        raise ValueError("two members with one worker index")
    return Generation(number, members)


def next_number(recorded: int, agents: Iterable[Agent]) -> int:
    """One above everything that status or any agent, connected or not, has ever seen."""
    return max([recorded, *(agent.state.highest for agent in agents)]) + 1


def adopt(number: int, size: int, digest: str, agents: Sequence[Agent], gone: Sequence[Worker] = (), procs: int = 1) -> Generation | None:
    """Generation `number` rebuilt from what its members report, or None while (or because) they do not add up.

    `gone`: workers of `procs` processes that have ended as its members and speak no more. Where there are such, the digest cannot be
    computed; then the agents' word for it and the number of members must do.
    """
    reporting = [a for a in agents if a.connected and a.state.generation == number and a.state.digest == digest]
    heard = {agent.worker for agent in reporting}
    silent = [Member(w.index, w.uid, "", procs, "") for w in gone if w.index not in heard]
    members = sorted([*(member_of(a) for a in reporting), *silent], key=lambda member: member.worker)
    if size < 1 or len(members) != size or len({m.worker for m in members}) != size:
        return None
    rebuilt = Generation(number, tuple(members), recorded=digest if silent else "")
    return rebuilt if rebuilt.digest == digest else None


def started(generation: Generation, agents: Iterable[Agent], gone: Collection[str] = ()) -> bool:
    """Every member's processes of this generation were started (they may have ended since; `gone`: UIDs of workers that have ended)."""
    after_start = {messages.RUNNING, messages.SUCCEEDED, messages.FAILED, messages.STOPPED}
    places = {(a.uid, a.boot) for a in agents if a.state.generation == generation.number and a.state.phase in after_start}
    return all((member.uid, member.boot) in places or member.uid in gone for member in generation.members)
