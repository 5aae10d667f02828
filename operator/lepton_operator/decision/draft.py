"""One plan in the making: the facts of the world, indexed for looking, and what has been decided so far. It decides nothing itself."""

from dataclasses import replace
from typing import Any

from lepton_operator import conditions
from lepton_operator.decision import rounds
from lepton_operator.decision.evidence import Judgement
from lepton_operator.decision.world import Delete, Memory, Plan, World
from lepton_operator.status import Status, read_status
from lepton_operator.substrate import Event
from lepton_operator.worker import Agent, Clock, GroupOrder, Phase, Worker
from lepton_trainer.protocol import messages
from lepton_trainer.protocol.messages import Progress

REPLACE_SECONDS = 10.0
"""A worker whose agent was lost but whose pod still runs may come back for so long; then it is deleted."""
GRACE_SECONDS = 5.0
"""What the processes of a worker that is let go in peace are given."""
SHORTEST_WAIT_SECONDS = 0.01


class Draft:
    """Reads the world, accumulates one status, is asked for the result once."""

    def __init__(self, world: World, memory: Memory, now: Clock) -> None:
        self.world, self.memory, self.now = world, memory, now
        self.job = world.job
        self.observed = read_status(world.job.status)
        self.status = self.observed
        self.by_uid = {worker.uid: worker for worker in world.workers}
        self.boots: dict[str, list[Agent]] = {}
        for agent in sorted(world.agents, key=lambda a: a.joined):
            self.boots.setdefault(agent.uid, []).append(agent)
        self.judgements: tuple[Judgement, ...] = ()
        self.creates: list[int] = []
        self.deletes: list[Delete] = []
        self.events: list[Event] = []
        self.shutdown: dict[str, str] = {}
        self.serve = ""
        self.stop_serving = False
        self.probe = False
        self.decided = False  # complete or failed, by this plan
        self.returning = False  # agents of the generation on record still come back to a new leader: nothing is known better
        self.waits: list[float] = []
        self.holding = ""  # why no generation is formed although one is due, for the user

    # -- looking ---------------------------------------------------------------------------------------------------------------------

    def has_been(self, kind: str) -> bool:
        """Whether this condition is true in the status as observed."""
        return conditions.is_true(self.observed.conditions, kind)

    def broken(self) -> bool:
        """A member of the current generation was lost, or its processes failed."""
        return any(j.bad for j in self.judgements)

    def living(self, index: int) -> list[Worker]:
        """Workers of this index that are or may become useful."""
        return [
            w
            for w in self.world.workers
            if w.index == index and w.phase in (Phase.PENDING, Phase.RUNNING) and not w.deleting and not self.given_up(w)
        ]

    def given_up(self, worker: Worker) -> bool:
        """Its agent was judged lost, and it has had its time to come back (none where its node is gone)."""
        since = self.memory.lost_at.get(worker.uid)
        if since is None:
            return False
        return not worker.node_ready or self.now.mono - since >= REPLACE_SECONDS

    def speaker(self, worker: Worker) -> Agent | None:
        """The connected agent in this worker, its newest boot."""
        newest = self.boots.get(worker.uid, [])[-1:]
        return newest[0] if newest and newest[0].connected else None

    def first_speaker(self) -> Agent | None:
        """The member of the lowest rank that has reported a step, connected if any such is; else whoever is connected."""
        known = [j.agent for j in self.judgements if j.agent is not None]
        connected = [a for a in known if a.connected]
        spoken = [a for a in [*connected, *known] if a.progress.step is not None and self.is_present(a.progress)]
        return spoken[0] if spoken else connected[0] if connected else None

    def member_uids(self) -> set[str]:
        """Of the current generation."""
        return {m.uid for m in self.memory.group.members} if self.memory.group else set()

    def candidates(self) -> list[Agent]:
        """Who could be a member now: one connected agent for each wanted index."""
        members = self.member_uids()
        lost = self.memory.lost_at
        found: list[Agent] = []
        for index in range(self.job.workers.replicas):
            speaking = [(w, a) for w in self.living(index) if w.uid not in lost and (a := self.speaker(w)) is not None]
            speakers = [(w, a) for w, a in speaking if not a.state.leaving]
            if speakers:
                found.append(min(speakers, key=lambda pair: (pair[0].uid not in members, pair[0].created, pair[0].name))[1])
        return found

    @property
    def past(self) -> int:
        """The generation that ended the round before this one; 0: this is the first, or there are none."""
        return self.status.evaluation.past if self.status.evaluation is not None else 0

    def is_present(self, progress: Progress) -> bool:
        """Whether this was reported in the running round: steps begin anew in each, so what is older compares with nothing."""
        return not self.past or progress.generation > self.past

    def top_step(self) -> int | None:
        """The highest step of this round that any agent of the job is known to have reported."""
        seen = [a.progress.step for a in self.world.agents if a.progress.step is not None and self.is_present(a.progress)]
        return max([*seen, *([self.memory.top_step] if self.memory.top_step is not None else [])], default=None)

    # -- deciding --------------------------------------------------------------------------------------------------------------------

    def remember(self, **changes: Any) -> None:
        self.memory = replace(self.memory, **changes)

    def wait(self, seconds: float) -> None:
        """Looks again after so long, or sooner."""
        self.waits.append(max(SHORTEST_WAIT_SECONDS, seconds))

    def event(self, kind: str, reason: str, message: str) -> None:
        self.events.append(Event(kind, reason, message))

    def condition(self, kind: str, status: bool, reason: str, message: str) -> None:
        new = conditions.Condition(kind, status, reason, message, self.now.wall, self.job.generation)
        self.status = replace(self.status, conditions=conditions.with_condition(self.status.conditions, new))

    # -- the result ------------------------------------------------------------------------------------------------------------------

    def order(self) -> GroupOrder:
        """What the coordinator must deliver, whole."""
        group, job = self.memory.group, self.job
        allowed = {w.uid: w.index for w in self.world.workers if w.phase in (Phase.PENDING, Phase.RUNNING)}
        grace = 0.0 if messages.JOB_FAILED in self.shutdown.values() else GRACE_SECONDS
        base = GroupOrder(job.key, job.uid, allowed, shutdown=dict(self.shutdown), grace_seconds=grace)
        if group is None:
            return base
        return replace(
            base,
            number=group.number,
            members=group.orders(),
            world_size=group.world_size,
            master_host=group.master.host,
            digest=group.digest,
            restarts=self.status.restarts.total,
            max_restarts=job.recovery.max_restarts,
            **self._round(),
            stop_requested=self.memory.stop_since is not None,
        )

    def _round(self) -> dict[str, Any]:
        view = self.status.evaluation
        if self.job.evaluation is None or view is None:
            return {}
        given = rounds.given(self.job, view, self.world.checkpoints)
        return {"round": view.round, "env": given.env, "args": given.args}

    def plan(self, status: Status | None) -> Plan:
        """The plan, with `status` to be written (None: nothing is)."""
        return Plan(
            memory=self.memory,
            status=status,
            order=self.order(),
            create=tuple(self.creates),
            delete=tuple(self.deletes),
            events=tuple(self.events),
            serve=self.serve,
            stop_serving=self.stop_serving,
            probe=self.probe,
            wake=min(self.waits) if self.waits else None,
        )
