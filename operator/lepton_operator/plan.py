"""The one decision: given a job, its workers, its agents and the time, what must be done now.

Level-triggered: it never asks what happened, only what is. It does nothing itself and remembers nothing but the `Memory` that it returns; a
memory that is lost (a new leader) is rebuilt from status and from what the agents report. A number is won by the status write that carries
it: the caller writes `Plan.status` first and only then adopts `Plan.memory` and delivers `Plan.order`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lepton_operator import cause, conditions, evidence, generation, goodput, policies, view
from lepton_operator.evidence import Judgement, Kind, Verdict
from lepton_operator.generation import Generation
from lepton_operator.job import Job
from lepton_operator.status import HISTORY_LIMIT, HistoryEntry, Incident, LastFailure, MicroTime, Rendezvous, Status, Time, read_status
from lepton_operator.substrate import Event
from lepton_operator.worker import Agent, Clock, GroupOrder, Phase, Worker
from lepton_trainer.protocol import messages

FIRST_GROUP_SECONDS = 30.0
"""The first generation waits so long for all replicas, once `minReplicas` have joined; then it forms without the rest."""
GROW_SECONDS = 1.0
"""A worker that has joined a running group waits so long for others that are about to join, too."""
CHECKPOINT_WAIT_SECONDS = 60.0
"""A script that cannot stop but reports checkpoints is interrupted right after one, or after so long."""
STOP_SECONDS = 30.0
"""A coordinated stop takes at most so long; the generation is then ended without it."""
WITNESS_SECONDS = 0.1
"""After failures that are all witnesses, so long for the cause to show itself."""
START_SECONDS = 120.0
"""A member that has not started its processes so long after its generation was published is replaced."""
REPLACE_SECONDS = 10.0
"""A worker whose agent was lost but whose pod still runs may come back for so long; then it is deleted."""
REJECTION_SECONDS = 10.0
"""After a refused creation (quota, admission) the next try waits so long."""
WIND_DOWN_SECONDS = 15.0
"""A finished job's worker that no agent speaks for is deleted after so long."""


@dataclass(frozen=True, slots=True)
class Rejection:
    reason: str
    message: str
    mono: float


@dataclass(frozen=True, slots=True)
class World:
    """What is."""

    job: Job
    workers: Sequence[Worker]
    agents: Sequence[Agent]
    manager: str  # this installation, "namespace/release"
    leading_since: float = 0.0  # mono: since when this process decides (and its coordinator listens)
    blind: bool = False
    rejection: Rejection | None = None
    claimant_gone: bool = False  # the installation in status.manager has not renewed its Lease for long


@dataclass(frozen=True, slots=True)
class Memory:
    """What a leader remembers of a job beyond its status; losing it costs a look at the agents, never a decision."""

    group: Generation | None = None
    formed: float = 0.0  # mono
    reason: str = ""  # why the current generation was made
    ready_since: float | None = None  # mono: since when minReplicas have joined, before the first generation
    broken_since: float | None = None  # mono: first evidence of the interruption that is still going on
    booked: int = 0  # number of the generation whose end is already counted in restarts
    stepped: bool = False  # the current generation has reported a step
    top_step: int | None = None  # the highest step of any generation
    stop_since: float | None = None  # mono: a coordinated stop was asked for
    grow_checkpoint: int | None = None  # checkpoint step when somebody began to wait
    lost_at: dict[str, float] = field(default_factory=dict)  # uid -> mono, of workers whose agent was judged lost and is not back
    account: goodput.Account = field(default_factory=goodput.Account)
    counters: goodput.Counters = field(default_factory=goodput.Counters)
    written: float = 0.0  # mono of the last status write
    progress_writes: int = 0
    first_step: float | None = None  # mono, of the job in this memory
    ended: float | None = None  # mono: since when the job is seen as ended


@dataclass(frozen=True, slots=True)
class Delete:
    worker: Worker
    why: str
    grace_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: write, then publish, then delete and create, then tell."""

    memory: Memory
    status: Status | None = None  # to be written; None: what is written is right
    order: GroupOrder | None = None  # to be delivered by the coordinator; None: this job is nobody's here
    create: tuple[int, ...] = ()
    delete: tuple[Delete, ...] = ()
    events: tuple[Event, ...] = ()
    probe: bool = False
    wake: float | None = None  # seconds


def plan(world: World, memory: Memory, now: Clock) -> Plan:
    """What has to be done for `world.job` at `now`."""
    draft = Draft(world, memory, now)
    observed = draft.observed
    if observed.manager and observed.manager != world.manager and not world.claimant_gone:
        return Plan(memory, wake=30.0)
    if conditions.is_true(observed.conditions, conditions.FINISHED):
        return Plan(memory, order=draft.order())
    if conditions.is_true(observed.conditions, conditions.COMPLETE) or conditions.is_true(observed.conditions, conditions.FAILED):
        draft.wind_down()
        return draft.finish()
    draft.accept()
    draft.adopt()
    draft.judge()
    if draft.all_succeeded():
        draft.complete()
    else:
        draft.book_failures()
        if not draft.failed:
            draft.level_workers()
            draft.regroup()
    return draft.finish()


class Draft:
    """One plan in the making: reads the world, accumulates one status, is asked for the result once."""

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
        self.probe = False
        self.failed = False
        self.waits: list[float] = []
        self.holding = ""  # why no generation is formed although one is due, for the user

    # -- looking ---------------------------------------------------------------------------------------------------------------------

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

    def candidates(self) -> list[Agent]:
        """Who could be a member now: one connected agent for each wanted index."""
        members = {m.uid for m in self.memory.group.members} if self.memory.group else set()
        found: list[Agent] = []
        for index in range(self.job.workers.replicas):
            speakers = [(w, a) for w in self.living(index) if (a := self.speaker(w)) is not None and not a.state.leaving]
            if speakers:
                found.append(min(speakers, key=lambda pair: (pair[0].uid not in members, pair[0].created, pair[0].name))[1])
        return found

    def wait(self, seconds: float) -> None:
        self.waits.append(max(0.01, seconds))

    # -- the steps of a plan ---------------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        wall = self.now.wall
        first = not self.observed.manager
        self.status = replace(
            self.status,
            manager=self.world.manager,
            observed_generation=self.job.generation,
            start_time=self.status.start_time or Time(wall),
            selector=view.selector(self.job),
        )
        self.condition(conditions.ACCEPTED, True, "Accepted", "the job is served")
        if first:
            self.status = replace(self.status, state="Pending")
        elif self.observed.manager != self.world.manager:
            self.events.append(Event("Normal", "Claimed", f"taken over from {self.observed.manager}, whose Lease has long expired"))
        if not self.memory.account.current:
            self.memory = replace(self.memory, account=goodput.resume(self.observed.goodput), top_step=self.observed.progress.step)

    def adopt(self) -> None:
        """A leader without a memory of the current generation rebuilds it from the agents' reports, or decides to replace it."""
        recorded = self.observed.rendezvous
        if self.memory.group is not None or recorded.generation == 0:
            return
        done = [w for w in self.world.workers if w.phase is Phase.SUCCEEDED and not w.deleting]
        found = generation.adopt(recorded.generation, recorded.size, recorded.digest, self.world.agents, done)
        if found is not None and generation.started(found, self.world.agents, {w.uid for w in done}):
            self.memory = replace(self.memory, group=found, formed=self.now.mono, reason="Adopted")

    def judge(self) -> None:
        group = self.memory.group
        if group is None:
            return
        facts = evidence.Facts(self.by_uid, self.boots, self.world.blind, self.world.leading_since)
        judgements = evidence.judge(group, facts, self.now)
        overdue = self.now.mono - self.memory.formed > START_SECONDS
        self.judgements = tuple(self._overdue(j) if overdue else j for j in judgements)
        lost = {j.member.uid for j in self.judgements if j.verdict is Verdict.LOST}
        lost_at = {uid: self.memory.lost_at.get(uid, self.now.mono) for uid in lost}
        kept = {uid: at for uid, at in self.memory.lost_at.items() if (w := self.by_uid.get(uid)) is not None and not self.speaker(w)}
        self.memory = replace(self.memory, lost_at={**kept, **lost_at})
        if self.memory.booked == group.number and not self.broken():
            self.memory = replace(self.memory, booked=0, broken_since=None)  # whoever was missing came back in time
        if any(j.verdict is Verdict.SUSPECTED for j in self.judgements):
            self.probe = True
            self.wait(evidence.POLL_SECONDS)
        if any(j.verdict is Verdict.UNKNOWN for j in self.judgements):
            self.wait(1.0)

    def _overdue(self, j: Judgement) -> Judgement:
        group = self.memory.group
        if j.verdict is not Verdict.ALIVE or j.agent is None or group is None:
            return j
        if j.agent.state.generation == group.number and j.agent.state.phase == messages.RUNNING:
            return j
        return replace(j, verdict=Verdict.LOST, reason="StartTimedOut", message="its agent did not start the generation", costs=True)

    def all_succeeded(self) -> bool:
        return bool(self.judgements) and all(j.verdict is Verdict.SUCCEEDED for j in self.judgements)

    def complete(self) -> None:
        wall = self.now.wall
        self.events.append(Event("Normal", "Completed", f"all {len(self.judgements)} workers ended with success"))
        self.condition(conditions.COMPLETE, True, "Completed", "every worker ended with success")
        self.status = replace(self.status, state="Complete", reason="Completed", message="every worker ended with success")
        self.status = replace(self.status, completion_time=Time(wall))

    def fail(self, reason: str, message: str) -> None:
        self.failed = True
        self.events.append(Event("Warning", reason, message))
        self.condition(conditions.FAILED, True, reason, message)
        self.status = replace(self.status, state="Failed", reason=reason, message=message, completion_time=Time(self.now.wall))

    def book_failures(self) -> None:
        """Counts each failure once: a broken generation as one incident, a worker that never joined as one of its own."""
        incidents = list(self.observed.restarts.recent)
        explained = {uid for incident in incidents for uid in incident.workers}
        known = len(incidents)
        failure: LastFailure | None = None
        restarts = self.observed.restarts
        if self.broken() and self.memory.group is not None and self.memory.booked != self.memory.group.number:
            if self._cause_pending():
                return
            group = self.memory.group
            culprit, failure = cause.find_cause(self.job, group, self.judgements, self.now.wall)
            kind = culprit.kind
            restarts = replace(restarts, **{kind.value: getattr(restarts, kind.value) + 1}, total=restarts.total + 1)
            gone = tuple(j.member.uid for j in self.judgements if j.verdict is Verdict.LOST)
            if culprit.costs:
                incidents.append(Incident(MicroTime(self.now.wall), failure.reason, group.number, gone[:8], self.top_step()))
            explained |= set(gone)
            title = "ProcessFailed" if kind is Kind.PROCESS else "WorkerLost"
            self.events.append(Event("Warning", title, failure.message))
            self.memory = replace(self.memory, booked=group.number, broken_since=self.memory.broken_since or self.now.mono)
        members = {m.uid for m in self.memory.group.members} if self.memory.group else set()
        for worker in self.world.workers:
            never = worker.phase is Phase.FAILED and not worker.deleting and not worker.evicted and worker.index < self.job.workers.replicas
            if never and worker.uid not in explained and worker.uid not in members and worker.uid not in self.memory.lost_at:
                failure = cause.of_worker(self.job, worker, self.now.wall)
                restarts = replace(restarts, pod=restarts.pod + 1, total=restarts.total + 1)
                incidents.append(Incident(MicroTime(self.now.wall), failure.reason, 0, (worker.uid,), self.top_step()))
                self.events.append(Event("Warning", "WorkerFailed", failure.message))
        kept = policies.within_window(incidents, self.job.recovery, self.now.wall) if len(incidents) > known else tuple(incidents)
        self.status = replace(self.status, restarts=replace(restarts, recent=kept), last_failure=failure or self.status.last_failure)
        if len(incidents) > known and (sentence := policies.verdict(incidents, self.job.recovery, self.now.wall)):
            why = self.status.last_failure.message if self.status.last_failure else ""
            self.fail(sentence.reason, f"{sentence.message}; the last: {why}")

    def broken(self) -> bool:
        return any(j.bad for j in self.judgements)

    def _cause_pending(self) -> bool:
        """Only witnesses so far: the one that they witnessed shows itself in a moment, or is suspected already."""
        failed = [j for j in self.judgements if j.verdict is Verdict.FAILED]
        if any(j.verdict is Verdict.LOST for j in self.judgements):
            return False
        if not all(j.agent and j.agent.state.exits and j.agent.state.exits[0].witness for j in failed):
            return False
        self.memory = replace(self.memory, broken_since=self.memory.broken_since or self.now.mono)
        age = self.now.mono - (self.memory.broken_since or self.now.mono)
        suspected = any(j.verdict in (Verdict.SUSPECTED, Verdict.UNKNOWN) for j in self.judgements) and age < 3.0
        if age < WITNESS_SECONDS or suspected:
            self.wait(0.02)
            return True
        return False

    def top_step(self) -> int | None:
        seen = [a.progress.step for a in self.world.agents if a.progress.step is not None]
        return max([*seen, *([self.memory.top_step] if self.memory.top_step is not None else [])], default=None)

    def level_workers(self) -> None:
        """One living worker for each wanted index, none beyond."""
        job, group = self.job, self.memory.group
        done = {j.member.worker for j in self.judgements if j.verdict is Verdict.SUCCEEDED}
        members = {m.uid for m in group.members} if group else set()
        blocked = self.world.rejection is not None and self.now.mono - self.world.rejection.mono < REJECTION_SECONDS
        delay = self._retry_wait()
        for index in range(job.workers.replicas):
            living = self.living(index)
            if len(living) > 1:
                keep = min(living, key=lambda w: (w.uid not in members, self.speaker(w) is None, w.created, w.name))
                self.deletes += [Delete(w, "one worker too many of this index") for w in living if w is not keep]
            elif not living and index not in done:
                if blocked or delay > 0:
                    self.wait(delay or REJECTION_SECONDS)
                else:
                    self.creates.append(index)
        for worker in self.world.workers:
            active = worker.phase in (Phase.PENDING, Phase.RUNNING) and not worker.deleting
            if active and self.given_up(worker):
                self.deletes.append(Delete(worker, "its agent was lost", 0.0 if not worker.node_ready else None))
            elif active and worker.index >= job.workers.replicas and worker.uid not in members:
                self.shutdown[worker.uid] = messages.REMOVED
                self.deletes.append(Delete(worker, "scaled down"))
        if any(uid in self.by_uid for uid in self.memory.lost_at):
            self.wait(REPLACE_SECONDS)

    def _retry_wait(self) -> float:
        recent = policies.within_window(self.status.restarts.recent, self.job.recovery, self.now.wall)
        if not recent:
            return 0.0
        top = self.top_step()
        progressed = top is not None and (recent[-1].step is None or top > recent[-1].step)
        return max(0.0, recent[-1].time + policies.retry_delay(recent, progressed) - self.now.wall)

    def regroup(self) -> None:
        """Forms the next generation when one is due and may be."""
        why = self._due()
        if not why:
            return
        members = self.candidates()
        done = sum(1 for j in self.judgements if j.verdict is Verdict.SUCCEEDED and not (j.agent and j.agent.connected))
        if len(members) + done < self.job.workers.min_replicas or not members:
            self.holding = f"{len(members)} of at least {self.job.workers.min_replicas} workers have joined"
            return
        if (delay := self._retry_wait()) > 0:
            self.holding = f"waiting {delay:.0f} s after repeated failures"
            self.wait(delay)
            return
        self._form(members, why)

    def _due(self) -> str:
        """Why a new generation is due now, in a CamelCase word; empty when none is, or not yet."""
        group = self.memory.group
        if group is None:
            return self._first_due()
        if self._cause_pending() if self.broken() else False:
            return ""
        if self.broken():
            lost = any(j.verdict is Verdict.LOST for j in self.judgements)
            if any(j.verdict is Verdict.SUSPECTED for j in self.judgements) and self._within(evidence.UNKNOWN_STEP_SECONDS):
                return ""
            return "WorkerLost" if lost else "ProcessFailed"
        finishing = any(j.verdict is Verdict.SUCCEEDED for j in self.judgements)
        stopped = [j for j in self.judgements if j.verdict is Verdict.STOPPED]
        leaving = [j for j in self.judgements if j.verdict is Verdict.LEAVING]
        over = [j for j in self.judgements if j.member.worker >= self.job.workers.replicas]
        members = {m.uid for m in group.members}
        joined = [a for a in self.candidates() if a.uid not in members or (a.uid, a.boot) not in {(m.uid, m.boot) for m in group.members}]
        why = (
            "WorkerLeaving" if leaving else "ScaledDown" if over else "Grown" if joined and not finishing else "Stopped" if stopped else ""
        )
        if not why:
            if self.memory.stop_since is not None or self.memory.grow_checkpoint is not None:
                self.memory = replace(self.memory, stop_since=None, grow_checkpoint=None)
            return ""
        if why == "Grown" and not self._may_grow(joined):
            return ""
        return why if self._stopped(bool(leaving)) else ""

    def _within(self, seconds: float) -> bool:
        return self.memory.broken_since is not None and self.now.mono - self.memory.broken_since < seconds

    def _first_due(self) -> str:
        members = self.candidates()
        recorded = self.observed.rendezvous.generation
        if recorded:
            expected = [w for i in range(self.job.workers.replicas) for w in self.living(i) if w.phase is Phase.RUNNING]
            missing = [w for w in expected if self.speaker(w) is None]
            if missing and self.now.mono - self.world.leading_since < evidence.RETURN_SECONDS:
                self.wait(0.5)
                return ""
            return "LeaderChanged"
        if len(members) >= self.job.workers.replicas:
            return "FirstGroup"
        if len(members) < self.job.workers.min_replicas:
            self.memory = replace(self.memory, ready_since=None)
            return "FirstGroup"  # regroup() holds it and says how many are missing
        since = self.memory.ready_since if self.memory.ready_since is not None else self.now.mono
        self.memory = replace(self.memory, ready_since=since)
        left = since + FIRST_GROUP_SECONDS - self.now.mono
        if left > 0:
            self.holding = f"{len(members)} of {self.job.workers.replicas} workers have joined; going on without the rest in {left:.0f} s"
            self.wait(left)
            return ""
        return "FirstGroup"

    def _may_grow(self, joined: Sequence[Agent]) -> bool:
        youngest = max(a.joined for a in joined)
        left = youngest + GROW_SECONDS - self.now.mono
        if left > 0:
            self.wait(left)
            return False
        speaker = self.first_speaker()
        step = speaker.progress.checkpoint_step if speaker else None
        if step is None or self._can_stop():
            return True
        if self.memory.grow_checkpoint is None:
            self.memory = replace(self.memory, grow_checkpoint=step)
        left = youngest + CHECKPOINT_WAIT_SECONDS - self.now.mono
        if self.memory.grow_checkpoint == step and left > 0:
            self.wait(min(left, 1.0))
            return False
        return True

    def _can_stop(self) -> bool:
        alive = [j.agent for j in self.judgements if j.agent is not None and j.agent.connected]
        return bool(alive) and all(a.state.can_stop for a in alive)

    def _stopped(self, leaving: bool) -> bool:
        """True when the running generation may be ended now: it has stopped in good order, or cannot, or has had its time."""
        running = [j for j in self.judgements if j.verdict in (Verdict.ALIVE, Verdict.LEAVING)]
        if not running:
            return True
        if not self._can_stop() and self.memory.stop_since is None:
            return True
        since = self.memory.stop_since if self.memory.stop_since is not None else self.now.mono
        self.memory = replace(self.memory, stop_since=since)
        left = since + (STOP_SECONDS if not leaving else STOP_SECONDS - 5.0) - self.now.mono
        if left > 0:
            self.wait(min(left, 1.0))
            return False
        return True

    def _form(self, members: Sequence[Agent], why: str) -> None:
        number = generation.next_number(self.observed.rendezvous.generation, self.world.agents)
        formed = generation.form(number, members)
        master = self.by_uid[formed.master.uid].name
        entry = HistoryEntry(number, MicroTime(self.now.wall), formed.size, why)
        self.status = replace(
            self.status,
            rendezvous=Rendezvous(number, formed.size, master, formed.digest),
            history=(*self.status.history, entry)[-HISTORY_LIMIT:],
        )
        kept = len({m.uid for m in formed.members} & {m.uid for m in (self.memory.group.members if self.memory.group else ())})
        about = f"generation {number}: {formed.size} of {self.job.workers.replicas} workers, world size {formed.world_size}, {kept} kept"
        self.events.append(Event("Normal", why, about))
        broken = self.memory.broken_since
        if broken is None and self.memory.group is not None:
            broken = self.now.mono
        self.memory = replace(
            self.memory,
            group=formed,
            formed=self.now.mono,
            reason=why,
            broken_since=broken,
            stepped=False,
            stop_since=None,
            grow_checkpoint=None,
            top_step=self.top_step(),
        )
        self.judgements = ()

    def wind_down(self) -> None:
        """The job's verdict is written: agents are told, whoever does not listen is deleted, and then it is Finished."""
        done = conditions.is_true(self.observed.conditions, conditions.COMPLETE)
        since = self.memory.ended if self.memory.ended is not None else self.now.mono
        self.memory = replace(self.memory, ended=since)
        active = [w for w in self.world.workers if w.phase in (Phase.PENDING, Phase.RUNNING)]
        for worker in active:
            self.shutdown[worker.uid] = messages.COMPLETE if done else messages.JOB_FAILED
            unheard = self.speaker(worker) is None and (worker.phase is Phase.PENDING or self.now.mono - since > WIND_DOWN_SECONDS)
            if not worker.deleting and (unheard or self.now.mono - since > 4 * WIND_DOWN_SECONDS):
                self.deletes.append(Delete(worker, "the job has ended"))
        if active:
            self.wait(WIND_DOWN_SECONDS)
            return
        result = "complete" if done else "failed"
        self.condition(
            conditions.FINISHED, True, "JobComplete" if done else "JobFailed", f"the job is {result} and no worker runs any more"
        )

    # -- the result ------------------------------------------------------------------------------------------------------------------

    def condition(self, kind: str, status: bool, reason: str, message: str) -> None:
        new = conditions.Condition(kind, status, reason, message, self.now.wall, self.job.generation)
        self.status = replace(self.status, conditions=conditions.with_condition(self.status.conditions, new))

    def first_speaker(self) -> Agent | None:
        """The connected member of the lowest rank that has reported anything."""
        spoken = [j.agent for j in self.judgements if j.agent and j.agent.connected]
        return next((a for a in spoken if a.progress.step is not None), spoken[0] if spoken else None)

    def order(self) -> GroupOrder:
        """What the coordinator must deliver, whole."""
        group, job = self.memory.group, self.job
        allowed = {w.uid: w.index for w in self.world.workers if w.phase in (Phase.PENDING, Phase.RUNNING)}
        grace = 0.0 if messages.JOB_FAILED in self.shutdown.values() else 5.0
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
            stop_requested=self.memory.stop_since is not None,
        )

    def finish(self) -> Plan:
        """Describes the state of things and settles what must be written now, and what can wait."""
        view.describe(self)
        status, waits = view.due(self)
        if status is not None:
            self.memory = replace(self.memory, written=self.now.mono)
        self.waits += waits
        return Plan(
            memory=self.memory,
            status=status,
            order=self.order(),
            create=tuple(self.creates),
            delete=tuple(self.deletes),
            events=tuple(self.events),
            probe=self.probe,
            wake=min(self.waits) if self.waits else None,
        )
