"""Carrying a plan out: what is published, created and told when writes succeed, conflict or are refused."""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lepton_operator import conditions
from lepton_operator.job import Job, JobError, read_job, read_stub
from lepton_operator.reconciler import PLAIN_SECONDS, REJECTED_STATUS_SECONDS, Reconciler
from lepton_operator.status import Status, read_status
from lepton_operator.substrate import Conflict, Event, Rejected, Served, Unavailable
from lepton_operator.worker import Agent, Clock, GroupOrder, Phase, Worker
from lepton_trainer.protocol import messages as m
from simulation import manifest

KEY = "team/digits"


class Substrate:
    """One job and its workers in memory, with faults on demand."""

    serves = True

    def __init__(self, **spec: Any) -> None:
        self.body = manifest(2, 1, **spec)
        self.made: dict[str, Worker] = {}
        self.asked: list[str] = []
        self.events: list[Event] = []
        self.faults: list[Exception] = []
        self.conflicts = 0
        self.lost_answers = 0  # of writes that are carried out
        self.gone = False
        self.services = 0  # times that one was seen to
        self.foreign_service = False
        self.state = Served()
        self.looked: list[str] = []  # directories whose serving was looked at
        self.during_write: Callable[[], object] = lambda: None
        self.unknown: set[str] = set()  # parts of the status that the CRD of this cluster refuses

    def job(self, key: str) -> Job | None:
        if self.gone:
            return None
        try:
            return read_job(copy.deepcopy(self.body))
        except JobError as error:
            raise JobError(str(error), read_stub(self.body)) from None

    def workers(self, job: Job) -> list[Worker]:
        return list(self.made.values())

    async def create_worker(self, job: Job, name: str, index: int) -> Worker:
        self.asked.append(name)
        if self.faults:
            raise self.faults.pop(0)
        self.made[name] = Worker(name, f"uid-{name}", index, Phase.RUNNING)
        return self.made[name]

    async def delete_worker(self, job: Job, worker: Worker, grace_seconds: float | None) -> None:
        del self.made[worker.name]

    async def write_status(self, job: Job, status: dict[str, Any]) -> None:
        self.during_write()
        if self.unknown & set(status):
            raise Rejected("Invalid", f"{self.unknown & set(status)}: Invalid value")
        if self.conflicts:
            self.conflicts -= 1
            raise Conflict("changed")
        self.body["status"] = status
        self.body["metadata"]["resourceVersion"] = str(int(self.body["metadata"]["resourceVersion"]) + 1)
        if self.lost_answers:
            self.lost_answers -= 1
            raise Unavailable("no answer in time")

    async def served(self, job: Job, directory: str) -> Served:
        self.looked.append(directory)
        return self.state

    async def serve(self, job: Job, directory: str) -> None:
        if self.faults:
            raise self.faults.pop(0)
        self.state = replace(self.state, exists=True, current=True)

    async def stop_serving(self, job: Job) -> None:
        self.state = Served()

    def checkpoints(self, job: Job) -> str:
        return ""

    async def ensure_service(self, job: Job) -> None:
        assert job.intra_job_communication, "nobody asked for a Service"
        self.services += 1
        if self.foreign_service:
            raise Rejected("NameConflict", "a Service named digits exists and does not belong to this job")

    async def emit(self, job: Job, event: Event) -> None:
        self.events.append(event)


class Coordinator:
    listening_since = 0.0
    settled = 0.0

    def __init__(self, substrate: Substrate) -> None:
        self._substrate = substrate
        self.order: GroupOrder | None = None
        self.joined = False
        self.dropped: list[str] = []
        self.drops: list[tuple[str, str]] = []
        self.progress = m.Progress()

    def set_group(self, order: GroupOrder) -> None:
        self.order = order

    def drop_group(self, job: str) -> None:
        self.dropped.append(job)

    def agents(self, job: str) -> list[Agent]:
        if not self.joined:
            return []
        return [Agent(w.index, w.uid, "boot", "host", 1, m.State(1), self.progress) for w in self._substrate.made.values()]

    def forget(self, job: str, uid: str, boot: str) -> None: ...

    def probe(self, job: str) -> None: ...

    def drops_recent(self, seconds: float) -> list[tuple[str, str]]:
        return self.drops


class World:
    def __init__(self, **spec: Any) -> None:
        self.mono = 100.0
        self.substrate = Substrate(**spec)
        self.coordinator = Coordinator(self.substrate)
        self.finished: list[str] = []
        self.reconciler = self.another()

    def another(self) -> Reconciler:
        """A reconciler without any memory, of the same installation."""
        return Reconciler(
            self.substrate,
            self.coordinator,
            "lepton/one",
            lambda: Clock(1_700_000_000 + self.mono, self.mono),
            on_finished=self.finished.append,
        )

    def conclude(self, kind: str = conditions.COMPLETE) -> None:
        """The job's verdict is in its status, and nothing of it runs any more; Finished is still to be written."""
        verdict = conditions.Condition(kind, True, "Verdict", "", 1_700_000_000.0)
        status = Status(manager="lepton/one", state=kind, conditions=(verdict,))
        self.substrate.body["status"] = status.to_json()
        self.substrate.made.clear()

    async def look(self, times: int = 1) -> float | None:
        wake = None
        for _ in range(times):
            wake = await self.reconciler.reconcile(KEY)
            self.mono += 1.0
            await asyncio.sleep(0)  # events are told in the background
        return wake


async def test_workers_are_made_once() -> None:
    world = World()
    await world.look(3)
    assert sorted(w.index for w in world.substrate.made.values()) == [0, 1]
    assert len(world.substrate.asked) == 2


async def test_a_name_is_chosen_once_and_kept_over_retries() -> None:
    world = World()
    world.substrate.faults = [Unavailable("busy"), Unavailable("busy")]
    await world.look(3)
    assert len(world.substrate.asked) == 4
    assert len(set(world.substrate.asked)) == 2


async def test_a_name_that_a_foreign_pod_has_is_given_up() -> None:
    world = World()
    world.substrate.faults = [Rejected("NameConflict", "a pod of this name exists"), Rejected("QuotaExceeded", "pods=0")]
    await world.look()
    foreign, refused = world.substrate.asked
    world.mono += 30
    await world.look()
    again = world.substrate.asked[2:]
    assert len(again) == 2 and foreign not in again and refused in again
    assert foreign not in world.substrate.made


async def test_nothing_is_published_that_the_status_write_has_not_won() -> None:
    world = World()
    await world.look(2)
    world.coordinator.joined = True
    world.substrate.conflicts = 1
    assert await world.look() is not None
    assert world.coordinator.order is None or world.coordinator.order.number == 0
    await world.look()
    assert world.coordinator.order is not None
    assert world.coordinator.order.number == 1
    assert read_status(world.substrate.body["status"]).rendezvous.generation == 1


async def test_the_refusers_words_reach_the_condition_and_the_creation_is_tried_again() -> None:
    world = World()
    world.substrate.faults = [Rejected("QuotaExceeded", "exceeded quota: pods=1"), Rejected("QuotaExceeded", "exceeded quota: pods=1")]
    await world.look(3)
    ready = conditions.find(read_status(world.substrate.body["status"]).conditions, conditions.PODS_READY)
    assert ready is not None
    assert (ready.reason, ready.status) == ("QuotaExceeded", False)
    assert "exceeded quota: pods=1" in ready.message
    world.mono += 30
    await world.look(3)
    assert len(world.substrate.made) == 2


async def test_the_service_is_seen_to_as_long_as_the_job_lives_for_somebody_may_delete_it() -> None:
    world = World(intraJobCommunication=True)
    await world.look(3)
    seen = world.substrate.services
    await world.look(3)
    assert world.substrate.services > seen
    world.conclude()
    await world.look()
    seen = world.substrate.services
    await world.look(3)
    assert world.substrate.services == seen, "a job that has ended needs none"


async def test_a_foreign_service_keeps_new_workers_from_being_made_but_surplus_ones_go() -> None:
    world = World(intraJobCommunication=True)
    await world.look(3)
    world.substrate.foreign_service = True
    world.substrate.made["twin"] = Worker("twin", "uid-twin", 1, Phase.RUNNING, created=1e9)
    world.substrate.made = {name: w for name, w in world.substrate.made.items() if w.index == 1}
    await world.look(2)
    assert [w.index for w in world.substrate.made.values()] == [1]
    ready = conditions.find(read_status(world.substrate.body["status"]).conditions, conditions.PODS_READY)
    assert ready is not None and ready.reason == "NameConflict"
    world.substrate.foreign_service = False
    world.mono += 30
    await world.look(2)
    assert sorted(w.index for w in world.substrate.made.values()) == [0, 1]


async def test_a_job_that_cannot_be_read_gets_one_condition_and_one_event() -> None:
    world = World()
    world.substrate.body["spec"]["workers"]["replicas"] = -3
    await world.look(3)
    status = read_status(world.substrate.body["status"])
    accepted = conditions.find(status.conditions, conditions.ACCEPTED)
    assert accepted is not None
    assert not accepted.status
    assert "spec.workers.replicas is -3" in accepted.message
    assert [event.reason for event in world.substrate.events] == ["InvalidSpec"]
    assert world.substrate.made == {}

    world.substrate.body["spec"]["workers"]["replicas"] = 2
    await world.look(2)
    assert conditions.is_true(read_status(world.substrate.body["status"]).conditions, conditions.ACCEPTED)
    assert len(world.substrate.made) == 2


async def test_a_deleted_job_is_forgotten_and_its_agents_are_let_go() -> None:
    world = World()
    await world.look(2)
    world.substrate.body["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert await world.look() is None
    assert world.coordinator.dropped == [KEY]
    assert KEY not in world.reconciler.summaries()


async def test_another_installations_job_is_left_alone_and_the_user_is_told_once() -> None:
    world = World()
    world.substrate.body["status"] = {"manager": "elsewhere/two"}
    before = copy.deepcopy(world.substrate.body)
    await world.look(3)
    assert world.substrate.body == before
    assert world.substrate.made == {}
    assert [event.reason for event in world.substrate.events] == ["ClaimedByAnother"]


async def dropped_together(jobs: int) -> World:
    """Five workers of `jobs` jobs, whose connections have just closed; they are those of one job in memory, looked at by several names."""
    world = World()
    world.substrate.body["spec"]["workers"]["replicas"] = 5
    for _ in range(2):
        for number in range(jobs):
            await world.reconciler.reconcile(f"team/{number}")
    world.coordinator.drops = [(f"team/{n % jobs}", w.uid) for n, w in enumerate(world.substrate.made.values())]
    assert len(world.coordinator.drops) == 5
    return world


@pytest.mark.parametrize(("jobs", "blind"), [(1, False), (2, True)])
async def test_the_coordinator_suspects_itself_when_agents_of_several_jobs_drop_together(jobs: int, blind: bool) -> None:
    world = await dropped_together(jobs)
    assert world.reconciler._blind() is blind
    world.coordinator.drops = []
    assert world.reconciler._blind() is blind, "until somebody is back"
    world.coordinator.joined = True
    assert not world.reconciler._blind()


def pods_end(world: World) -> None:
    world.substrate.made = {name: replace(w, phase=Phase.SUCCEEDED) for name, w in world.substrate.made.items()}


def nodes_go(world: World) -> None:
    world.substrate.made = {name: replace(w, node_ready=False) for name, w in world.substrate.made.items()}


def jobs_are_deleted(world: World) -> None:
    world.substrate.gone = True


def jobs_end(world: World) -> None:
    """Their pods run for a moment longer."""
    made = dict(world.substrate.made)
    world.conclude()
    world.substrate.made = made


@pytest.mark.parametrize("why", [pods_end, nodes_go, jobs_are_deleted, jobs_end])
@pytest.mark.parametrize("before", [True, False])
async def test_agents_that_had_a_reason_to_go_leave_nobody_blind(why: Callable[[World], None], before: bool) -> None:
    """They never come back, so waiting for them would blind the operator for the rest of its life."""
    world = await dropped_together(2)
    assert before or world.reconciler._blind()
    why(world)
    for number in range(2):
        await world.reconciler.reconcile(f"team/{number}")
    assert not world.reconciler._blind()


async def test_a_crd_of_another_version_that_refuses_a_view_stops_no_decision() -> None:
    world = World()
    world.substrate.unknown = {"startup", "goodput"}
    await world.look(2)
    world.coordinator.joined = True
    await world.look(2)
    assert read_status(world.substrate.body["status"]).rendezvous.generation == 1
    assert not world.substrate.unknown & set(world.substrate.body["status"])


async def test_a_crd_that_was_upgraded_shows_the_views_again() -> None:
    world = World()
    world.substrate.unknown = {"goodput", "startup"}
    await world.look(2)
    world.substrate.unknown = set()
    world.mono += PLAIN_SECONDS
    world.coordinator.joined = True
    await world.look(3)
    assert {"goodput", "startup"} & set(world.substrate.body["status"])


async def test_a_refused_complaint_about_a_job_is_made_again() -> None:
    world = World()
    world.substrate.body["spec"]["workers"]["replicas"] = -3
    world.substrate.unknown = {"conditions"}
    assert await world.look() == REJECTED_STATUS_SECONDS
    world.substrate.unknown = set()
    assert await world.look() is None
    assert "conditions" in world.substrate.body["status"]


async def test_a_server_that_stays_busy_is_asked_less_and_less_and_at_once_again_after_a_success() -> None:
    world = World()
    world.substrate.faults = [Unavailable("busy") for _ in range(20)]
    waits = [wake for _ in range(8) if (wake := await world.look()) is not None]
    assert waits[0] == 1.0 and waits[-1] > 8.0 and max(waits) <= 30.0
    world.substrate.faults = []
    await world.look()
    world.substrate.made.clear()
    world.substrate.faults = [Unavailable("busy")]
    assert await world.look() == 1.0


async def test_a_write_that_always_conflicts_is_no_hot_loop() -> None:
    world = World()
    world.substrate.conflicts = 100
    waits = [wake for _ in range(12) if (wake := await world.look()) is not None]
    assert waits[0] < 0.05 and waits[-1] > 5.0


async def test_another_installations_job_has_no_series_here() -> None:
    world = World()
    await world.look(2)
    assert KEY in world.reconciler.summaries()
    world.substrate.body["status"] = {"manager": "elsewhere/two"}
    await world.look()
    assert world.reconciler.summaries() == {}


async def test_what_a_scrape_counted_while_a_status_was_written_is_kept() -> None:
    world = World()
    world.coordinator.joined = True
    world.coordinator.progress = m.Progress(step=5, steps_total=5, samples_total=50.0)
    await world.look(3)

    def scrape() -> None:
        world.coordinator.progress = replace(world.coordinator.progress, step=9, steps_total=9, samples_total=90.0)
        shown.append(world.reconciler.summaries()[KEY].counters.samples)

    shown: list[float] = []
    world.substrate.during_write = scrape
    world.substrate.body["metadata"]["generation"] += 1  # something to write
    await world.look()
    world.substrate.during_write = lambda: None
    world.coordinator.joined = False
    shown.append(world.reconciler.summaries()[KEY].counters.samples)
    assert shown[0] == 90.0 and shown == sorted(shown)


@pytest.mark.parametrize("continued", [True, False])
async def test_a_process_that_leads_again_counts_on_and_never_back(continued: bool) -> None:
    """What was reported meanwhile is counted here only if no other process has led, and counted it, meanwhile."""
    world = World()
    world.coordinator.joined = True
    world.coordinator.progress = m.Progress(step=5, steps_total=5, samples_total=50.0)
    await world.look(6)
    before = world.reconciler.summaries()[KEY]
    assert before.counters.samples == 50.0 and sum(before.account.seconds.values()) > 0
    world.substrate.body["status"].pop("goodput")  # as it was written long ago
    world.coordinator.progress = replace(world.coordinator.progress, step=9, steps_total=9, samples_total=90.0)
    world.reconciler.lead(continued=continued)
    assert world.reconciler.summaries() == {}, "until it is looked at"
    await world.look(2)
    after = world.reconciler.summaries()[KEY]
    assert after.counters.samples == (90.0 if continued else 50.0)
    assert all(after.account.seconds[cause] >= spent for cause, spent in before.account.seconds.items())
    world.coordinator.progress = replace(world.coordinator.progress, step=10, steps_total=10, samples_total=100.0)
    assert world.reconciler.summaries()[KEY].counters.samples == after.counters.samples + 10.0
