"""Carries a plan out: write, publish, delete and create, tell. The one place where deciding meets acting, for either substrate.

A key is reconciled by one task at a time (`workqueue` sees to that). Nothing is published that the status write has not won.
"""

import asyncio
import logging
import random
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from lepton_operator import conditions
from lepton_operator.decision import goodput, rounds
from lepton_operator.decision.plan import Delete, Memory, Plan, Rejection, World, plan
from lepton_operator.job import Job, JobError, Json
from lepton_operator.status import VIEWS, EvaluationView, Status, read_status
from lepton_operator.substrate import Conflict, Event, Gone, Rejected, Served, Substrate, Unavailable
from lepton_operator.worker import Agent, Clock, GroupOrder, Phase, Worker

log = logging.getLogger(__name__)

SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""As Kubernetes names its own pods: no vowels, so no words."""
CONFLICT_SECONDS = 0.01
LONGEST_SECONDS = 30.0
LOOK_AGAIN_SECONDS = 0.05
"""After a status write the plan is asked once more: what it waits for next is counted from the write."""
INVALID = "InvalidSpec"
NAME_CONFLICT = "NameConflict"
REJECTED_STATUS_SECONDS = 30.0
PLAIN_SECONDS = 600.0
"""For so long a CRD that refused what is only shown is not asked again; it may have been upgraded by then."""
BLIND_WINDOW_SECONDS = 1.0
BLIND_DROPS, BLIND_JOBS = 5, 2


class Coordinator(Protocol):
    """What a reconciler needs of `coordinator.link.CoordinatorLink`."""

    def set_group(self, order: GroupOrder) -> None: ...
    def drop_group(self, job: str) -> None: ...
    def agents(self, job: str) -> list[Agent]: ...
    def forget(self, job: str, uid: str, boot: str) -> None: ...
    def probe(self, job: str) -> None: ...
    def drops_recent(self, seconds: float) -> list[tuple[str, str]]: ...
    @property
    def listening_since(self) -> float: ...
    @property
    def settled(self) -> float: ...


@dataclass(frozen=True, slots=True)
class JobSummary:
    """A job in numbers, for the operator's metrics."""

    namespace: str
    name: str
    state: str
    generation: int
    workers: Mapping[str, int]
    restarts: Mapping[str, int]
    counters: goodput.Counters
    loss: float | None
    account: goodput.Account
    evaluation: EvaluationView | None = None


@dataclass(slots=True)
class _Entry:
    """What this process keeps of a job between two looks."""

    uid: str
    memory: Memory = field(default_factory=Memory)
    names: dict[int, str] = field(default_factory=dict)  # chosen for a creation that has not succeeded yet
    rejection: Rejection | None = None
    serving_rejection: Rejection | None = None
    said: str = ""  # the last complaint about a job that cannot be served
    open: bool = True  # its end is still to be counted; False: it was finished when this process began to decide for it
    expected: frozenset[str] = frozenset()  # UIDs of the workers whose agents have no reason to be away
    status: Status = field(default_factory=Status)  # as it was last written, or read from `read`
    read: Json | None = None
    summary: JobSummary | None = None


@dataclass(frozen=True, slots=True)
class _Shown:
    """What this process has told of a job while it led before: its counters go on from there."""

    counters: goodput.Counters
    account: goodput.Account
    open: bool


class Reconciler:
    def __init__(
        self,
        substrate: Substrate,
        coordinator: Coordinator,
        manager: str,
        clock: Callable[[], Clock],
        claimant_gone: Callable[[str], bool] = lambda manager: False,
        on_finished: Callable[[str], None] = lambda result: None,
    ) -> None:
        self._substrate = substrate
        self._coordinator = coordinator
        self._manager = manager
        self._clock = clock
        self._claimant_gone = claimant_gone
        self._on_finished = on_finished
        self._entries: dict[str, _Entry] = {}
        self._shown: dict[str, _Shown] = {}  # by the job's UID, until it is looked at again
        self._background: set[asyncio.Task[None]] = set()
        self._plain: dict[str, float] = {}  # jobs whose whole status was refused -> mono until when it is not tried again
        self._failures: dict[str, int] = {}  # in a row
        self._missed: frozenset[tuple[str, str]] = frozenset()  # (job, worker UID): who dropped when all did
        self.leading_since = clock().mono

    def lead(self, *, continued: bool = False) -> None:
        """This process begins to decide: what it remembers from before is worth nothing, but its counters must not go back.

        `continued`: nobody else has led since it did, so what the agents have reported meanwhile is counted nowhere else."""
        for entry in self._entries.values():
            counters = entry.memory.counters if continued else entry.memory.counters.from_here()
            account = replace(entry.memory.account, current="")
            self._shown[entry.uid] = _Shown(counters, account, entry.open and continued)
        self._entries.clear()
        self._plain.clear()
        self._failures.clear()
        self._missed = frozenset()
        self.leading_since = self._clock().mono

    def forget(self, key: str) -> None:
        self._entries.pop(key, None)
        self._plain.pop(key, None)
        self._failures.pop(key, None)
        self._coordinator.drop_group(key)

    def summaries(self) -> Mapping[str, JobSummary]:
        """Numbers of every job served, with counters as fresh as the agents' last word."""
        return {key: self._fresh(key, entry.summary) for key, entry in self._entries.items() if entry.summary is not None}

    async def reconcile(self, key: str) -> float | None:
        """Looks at one job and does what is due. Returns the seconds until it must be looked at again, None for: when something changes."""
        try:
            again = await self._look(key)
            self._failures.pop(key, None)
            return again
        except Conflict:
            return self._patience(key, CONFLICT_SECONDS)
        except Gone:
            return None
        except Unavailable as error:
            log.warning("the API is unavailable: %s", error, extra={"job": key})
            return self._patience(key, error.retry_after)

    def _patience(self, key: str, first: float) -> float:
        """Seconds until the next try: `first`, or more, up to twice as much with each failure in a row; jobs that failed together part."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return first + random.uniform(0.5, 1.0) * max(0.0, min(LONGEST_SECONDS, first * 2.0 ** min(failures - 1, 20)) - first)

    async def _look(self, key: str) -> float | None:
        try:
            job = self._substrate.job(key)
        except JobError as error:
            return await self._refuse(key, error)
        entry = self._entries.get(key)
        if entry is not None and (job is None or job.deleting or job.uid != entry.uid):
            self._count_end(entry, gone=True)
        if job is None or job.deleting:
            self.forget(key)
            return None
        if entry is None or entry.uid != job.uid:
            entry = self._entries[key] = self._new_entry(job)
        return await self._step(key, job, entry)

    def _new_entry(self, job: Job) -> _Entry:
        status, shown = read_status(job.status), self._shown.pop(job.uid, None)
        entry = _Entry(job.uid, open=not conditions.is_true(status.conditions, conditions.FINISHED))
        if shown is not None:
            entry.memory = Memory(counters=shown.counters, account=shown.account)
            entry.open = entry.open or shown.open
        return entry

    async def _refuse(self, key: str, error: JobError) -> float | None:
        """A job that cannot be read gets a condition and an event, once; what it runs already is left alone."""
        job = error.stub
        if job is None or job.deleting:
            return None
        observed = read_status(job.status)
        if observed.manager not in ("", self._manager):
            return None
        condition = conditions.Condition(conditions.ACCEPTED, False, INVALID, str(error), self._clock().wall, job.generation)
        known = conditions.with_condition(observed.conditions, condition)
        if known == observed.conditions:
            return None
        log.warning("cannot be served: %s", error, extra={"job": key})
        state = observed.state or "Pending"
        status = replace(observed, conditions=known, manager=self._manager, state=state, reason=INVALID, message=str(error))
        try:
            await self._write(job, status)
        except Rejected as refusal:
            log.error("status refused: %s", refusal.message, extra={"job": key})
            return REJECTED_STATUS_SECONDS
        self._tell(job, Event("Warning", INVALID, str(error)))
        return None

    async def _step(self, key: str, job: Job, entry: _Entry) -> float | None:
        workers = self._substrate.workers(job)
        entry.expected = frozenset(w.uid for w in workers if _is_here(w))
        world = World(
            job=job,
            workers=workers,
            agents=self._coordinator.agents(key),
            manager=self._manager,
            leading_since=self.leading_since,
            listening_since=self._coordinator.listening_since,
            settled=self._coordinator.settled,
            blind=self._blind(),
            rejection=entry.rejection,
            checkpoints=self._substrate.checkpoints(job),
            serves=self._substrate.serves,
            served=await self._served(job, entry),
            serving_rejection=entry.serving_rejection,
            claimant_gone=self._claimant_gone(str(job.status.get("manager", ""))),
        )
        before = entry.memory
        decided = plan(world, before, self._clock())
        if decided.status is not None:
            try:
                await self._write(job, decided.status)
            except Rejected as error:
                log.error("status refused: %s", error.message, extra={"job": key})
                return REJECTED_STATUS_SECONDS
            job = self._substrate.job(key) or job
        # A scrape may have counted on while the status was written: counters never go back.
        counters = decided.memory.counters if entry.memory is before else entry.memory.counters
        entry.memory = replace(decided.memory, counters=counters)
        if entry.memory.ended is not None:
            entry.expected = frozenset()  # they are told to go
        for event in decided.events:
            self._tell(job, event)
        if decided.order is None:  # another installation's
            self._coordinator.drop_group(key)
            entry.summary = None
            return decided.wake
        self._summarise(job, entry, decided.status)
        self._coordinator.set_group(decided.order)
        if decided.probe:
            self._coordinator.probe(key)
        await self._act(job, entry, decided)
        await self._see_to_serving(job, entry, decided)
        self._forget_ended(key, world)
        return decided.wake if decided.status is None else LOOK_AGAIN_SECONDS

    async def _served(self, job: Job, entry: _Entry) -> Served | None:
        """How the model of a job that is complete is served; None where that is not asked for, or not due."""
        if not self._substrate.serves or job.status.get("state") != "Complete" or str(job.status.get("manager", "")) != self._manager:
            return None
        if job.serve is None and not any(c.get("type") == conditions.SERVING_READY for c in job.status.get("conditions", ())):
            return None
        view = read_status(job.status).evaluation
        directory = rounds.model_directory(job, self._substrate.checkpoints(job), view.round if view is not None else 0)
        try:
            return await self._substrate.served(job, directory)
        except Rejected as error:
            entry.serving_rejection = Rejection(error.reason, error.message, self._clock().mono)
            return Served()

    async def _see_to_serving(self, job: Job, entry: _Entry, decided: Plan) -> None:
        try:
            if decided.serve:
                await self._substrate.serve(job, decided.serve)
            if decided.stop_serving:
                await self._substrate.stop_serving(job)
            if decided.serve or decided.stop_serving:
                entry.serving_rejection = None
        except Rejected as error:
            log.warning("the model cannot be served: %s", error.message, extra={"job": job.key})
            entry.serving_rejection = Rejection(error.reason, error.message, self._clock().mono)

    async def _write(self, job: Job, status: Status) -> None:
        """A CRD of another version may not know what is only shown; what decides must be written all the same."""
        if self._clock().mono >= self._plain.get(job.key, 0.0):
            try:
                await self._substrate.write_status(job, status.to_json())
                return
            except Rejected as error:
                log.error("the CRD is of another version, status is written without views: %s", error.message, extra={"job": job.key})
        await self._substrate.write_status(job, {part: value for part, value in status.to_json().items() if part not in VIEWS})
        self._plain[job.key] = self._clock().mono + PLAIN_SECONDS

    async def _act(self, job: Job, entry: _Entry, decided: Plan) -> None:
        create = decided.create
        if job.intra_job_communication and entry.memory.ended is None:
            try:
                await self._substrate.ensure_service(job)
            except Rejected as error:
                self._reject(job, entry, error)
                create = ()
        creations = [self._create(job, entry, index) for index in create]
        deletions = [self._delete(job, delete) for delete in decided.delete]
        results = await asyncio.gather(*creations, *deletions, return_exceptions=True)
        failed = [r for r in results if isinstance(r, BaseException)]
        rejected = [r for r in failed if isinstance(r, Rejected)]
        if rejected:
            self._reject(job, entry, rejected[0])
        elif create and not failed:
            entry.rejection = None
        for failure in failed:
            if not isinstance(failure, Rejected):
                raise failure

    def _reject(self, job: Job, entry: _Entry, error: Rejected) -> None:
        log.warning("a worker cannot be created: %s", error.message, extra={"job": job.key})
        entry.rejection = Rejection(error.reason, error.message, self._clock().mono)

    async def _create(self, job: Job, entry: _Entry, index: int) -> Worker:
        name = entry.names.setdefault(index, f"{job.name}-{index}-{''.join(secrets.choice(SUFFIX_ALPHABET) for _ in range(5))}")
        try:
            worker = await self._substrate.create_worker(job, name, index)
        except Rejected as error:
            if error.reason == NAME_CONFLICT:  # nobody has to make room for a name that we have thrown by dice
                entry.names.pop(index, None)
            raise
        entry.names.pop(index, None)
        return worker

    async def _delete(self, job: Job, delete: Delete) -> None:
        log.info("deleting worker %s: %s", delete.worker.name, delete.why, extra={"job": job.key})
        try:
            await self._substrate.delete_worker(job, delete.worker, delete.grace_seconds)
        except Gone:
            return

    def _tell(self, job: Job, event: Event) -> None:
        log.info("%s: %s", event.reason, event.message, extra={"job": job.key})
        task = asyncio.get_running_loop().create_task(self._substrate.emit(job, event))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _blind(self) -> bool:
        """Many agents of several jobs dropped together: the coordinator suspects itself, not them, until some are back.

        Where pods, nodes or the end of their jobs tell why they went, nothing is suspected."""
        dropped = self._missed.union(self._coordinator.drops_recent(BLIND_WINDOW_SECONDS))
        missed = frozenset((key, uid) for key, uid in dropped if (entry := self._entries.get(key)) is not None and uid in entry.expected)
        jobs = {key for key, _ in missed}
        many = len(missed) >= BLIND_DROPS and len(jobs) >= BLIND_JOBS
        back = many and any(a.connected for key in jobs for a in self._coordinator.agents(key) if (key, a.uid) in missed)
        self._missed = missed if many and not back else frozenset()
        return bool(self._missed)

    def _forget_ended(self, key: str, world: World) -> None:
        """An agent whose worker has ended, or whose later boot speaks, is of no more use once it is judged and booked."""
        alive = {w.uid for w in world.workers}
        for agent in world.agents:
            if agent.uid not in alive and not agent.connected:
                self._coordinator.forget(key, agent.uid, agent.boot)

    def _count_end(self, entry: _Entry, *, gone: bool = False) -> None:
        """Counts a job's end once, whether or not the answer to the write that ended it arrived; `gone`: deleted, perhaps before that."""
        found = entry.status.conditions
        ended = conditions.is_true(found, conditions.COMPLETE) or conditions.is_true(found, conditions.FAILED)
        if entry.open and (conditions.is_true(found, conditions.FINISHED) or (gone and ended)):
            entry.open = False
            self._on_finished("complete" if conditions.is_true(found, conditions.COMPLETE) else "failed")

    def _summarise(self, job: Job, entry: _Entry, written: Status | None) -> None:
        if written is not None:
            entry.status, entry.read = written, None
        elif entry.read is not job.status:
            entry.status, entry.read = read_status(job.status), job.status
        self._count_end(entry)
        status = entry.status
        entry.summary = JobSummary(
            namespace=job.namespace,
            name=job.name,
            state=status.state,
            generation=status.rendezvous.generation,
            workers={
                "desired": status.workers.desired,
                "ready": status.workers.ready,
                "active": status.workers.active,
                "succeeded": status.workers.succeeded,
                "failed": status.workers.failed,
            },
            restarts={"process": status.restarts.process, "pod": status.restarts.pod, "node": status.restarts.node},
            counters=entry.memory.counters,
            loss=None,
            account=entry.memory.account,
            evaluation=status.evaluation,
        )

    def _fresh(self, key: str, summary: JobSummary) -> JobSummary:
        spoken = [a for a in self._coordinator.agents(key) if a.connected and a.progress.step is not None]
        agents = sorted(spoken, key=lambda a: (a.state.group_rank, a.joined))
        entry = self._entries[key]
        counters = entry.memory.counters
        counted = counters.speaker(agents)
        if counted is None:
            return summary
        first = counters.fresh and entry.status.progress.step is None  # else an earlier leader has counted
        counters, speaker = counters.observe(counted, fresh=first), agents[0]
        entry.memory = replace(entry.memory, counters=counters)
        loss = float(speaker.progress.loss) if speaker.progress.loss is not None else summary.loss
        entry.summary = replace(summary, counters=counters, loss=loss)
        return entry.summary


def _is_here(worker: Worker) -> bool:
    return worker.phase in (Phase.PENDING, Phase.RUNNING) and not worker.deleting and worker.node_ready
