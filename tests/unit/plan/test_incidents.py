"""Failures on the books: each is counted once, whatever restarts in between, and the budget bounds them all."""

import itertools
from dataclasses import replace

import pytest

from lepton_operator import conditions
from lepton_operator.decision.plan import Rejection
from lepton_operator.worker import Phase
from simulation import Simulation


def running(replicas: int = 2, minimum: int | None = None, **recovery: object) -> Simulation:
    """A job whose group runs and has stepped."""
    sim = Simulation(replicas, minimum, **({"recovery": recovery} if recovery else {}))
    sim.settle(rounds=4)
    sim.step(5)
    sim.decide()
    return sim


def is_failed(sim: Simulation) -> bool:
    return conditions.is_true(sim.status.conditions, conditions.FAILED)


def uid_of(sim: Simulation, index: int) -> str:
    return next(w.uid for w in sim.workers.values() if w.index == index and w.phase is Phase.RUNNING and not w.deleting)


def test_a_script_that_always_kills_itself_runs_once_more_than_max_restarts_allows() -> None:
    """pytorch/pytorch#147064: ranks that die at once and come back fast must be counted, too."""
    sim = Simulation(2, recovery={"maxRestarts": 2})
    ran: list[int] = []  # generations
    for _ in range(60):
        sim.settle(rounds=1, tick=0.05)
        if (started := sim.running()) and started[0].state.generation not in ran:
            ran.append(started[0].state.generation)
            sim.end_ranks(started[0].uid, exit_code=137, signal=9)
    assert ran == [1, 2, 3]
    assert is_failed(sim)
    assert sim.status.restarts.process == 3 and len(sim.status.restarts.recent) == 3
    failure = sim.status.last_failure
    assert failure is not None and failure.signal == 9 and "signal 9" in failure.message
    assert "allows 2 restarts" in sim.status.message


def test_what_the_built_in_trainer_cannot_use_fails_the_job_at_once_in_its_words() -> None:
    sim = Simulation(2, trainer={"builtin": {"imageClassification": {}}})
    sim.settle(rounds=4)
    sim.end_ranks(sim.running()[1].uid, exit_code=2, error="error: /data: there is no such directory")
    sim.settle()
    assert is_failed(sim) and sim.status.reason == "Misconfigured"
    assert "/data: there is no such directory" in sim.status.message
    assert (sim.status.rendezvous.generation, sim.status.restarts.total) == (1, 1)


@pytest.mark.parametrize(("trainer", "code"), [({"builtin": {"imageClassification": {}}}, 1), ({"command": ["python", "x.py"]}, 2)])
def test_other_failures_and_other_programs_are_tried_again(trainer: dict[str, object], code: int) -> None:
    sim = Simulation(2, trainer=trainer)
    sim.settle(rounds=4)
    sim.end_ranks(sim.running()[1].uid, exit_code=code)
    sim.settle()
    assert not is_failed(sim) and sim.status.rendezvous.generation == 2


def test_two_evictions_and_scaling_cost_no_budget_and_move_no_survivor() -> None:
    """volcano-sh/volcano#4814: what the controller deletes itself, and what is evicted, is no failure."""
    sim = running(4, 1, maxRestarts=1)
    survivors = {uid_of(sim, 0), uid_of(sim, 1)}
    sim.evict(uid_of(sim, 2))
    sim.settle()
    sim.scale(2)
    sim.settle()
    assert len(sim.running()) == 2
    sim.scale(4)
    sim.settle()
    sim.evict(uid_of(sim, 3))
    sim.settle()
    assert not is_failed(sim)
    assert sim.status.restarts.recent == ()
    assert survivors <= set(sim.workers)
    assert len(sim.running()) == 4
    assert sim.created == 4 + 1 + 2 + 1, "each gap is filled once: no second wave of pods"


@pytest.mark.parametrize("code", [1, 0])
def test_workers_that_end_before_they_join_are_replaced_ever_more_slowly_until_the_budget_is_spent(code: int) -> None:
    sim = Simulation(1, recovery={"maxRestarts": 4})
    moments: list[float] = []
    for _ in range(400):
        before = sim.created
        sim.decide()
        if sim.created > before:
            moments.append(sim.mono)
        for uid, worker in list(sim.workers.items()):
            if worker.phase is Phase.PENDING:
                phase = Phase.FAILED if code else Phase.SUCCEEDED
                sim.workers[uid] = replace(worker, phase=phase, exit_code=code, ended=sim.wall)
        sim.tick(0.1)
    assert is_failed(sim)
    assert sim.created == 5, "maxRestarts 4: five tries"
    pauses = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert pauses[0] < 0.2 and pauses[1] < 0.2 and pauses[2] >= 1.0 and pauses[3] >= 2.0
    assert sim.events.count("WorkerFailed") == 5
    assert sim.status.last_failure is not None and "ended before it joined" in sim.status.last_failure.message


def test_a_worker_that_never_joins_is_not_tried_faster_because_the_others_make_progress() -> None:
    sim = running(2, 1, maxRestarts=100)
    sim.delete_pod(uid_of(sim, 1))
    created = sim.created
    for number in range(100):
        sim.step(10 + number)
        sim.decide()
        for uid, worker in list(sim.workers.items()):
            if worker.phase is Phase.PENDING:
                sim.workers[uid] = replace(worker, phase=Phase.FAILED, exit_code=1, ended=sim.wall)
        for uid in list(sim.agents):
            sim.deliver(uid)
            sim.start_ranks(uid)
        sim.tick(0.1)
    assert sim.created - created <= 6, "10 seconds: tries after 0, 0, 1, 2 and 4 seconds"


def test_an_old_failed_pod_is_not_counted_again_when_its_incident_has_left_the_window() -> None:
    sim = running(2, 1, maxRestarts=100, window="60s")
    sim.kill_pod(uid_of(sim, 1))
    sim.settle()
    assert sim.status.restarts.total == 1
    for step in (50, 60, 70):
        sim.tick(61.0)
        sim.step(step)
        sim.decide()
        sim.end_ranks(sim.running()[0].uid)
        sim.settle()
    assert (sim.status.restarts.process, sim.status.restarts.pod) == (3, 1)
    assert len(sim.status.restarts.recent) == 1, "what has left the window is forgotten"


@pytest.mark.parametrize("what", ["a process failed", "a pod died", "a pod was evicted"])
def test_a_failure_is_counted_once_although_the_operator_restarts_right_after_it(what: str) -> None:
    sim = running(2)
    victim = uid_of(sim, 1)
    if what == "a process failed":
        sim.end_ranks(victim)
    elif what == "a pod died":
        sim.kill_pod(victim)
    else:
        sim.workers[victim] = replace(sim.workers[victim], phase=Phase.FAILED, evicted="Evicted")
        sim._drop(victim)
    sim.operators[0].rejection = None
    sim.decide()
    assert sim.status.restarts.total == 1
    for _ in range(5):
        sim.restart_operator()
        sim.decide()
        sim.tick(0.01)
    sim.settle()
    assert sim.status.restarts.total == 1
    assert len(sim.status.restarts.recent) == (0 if what == "a pod was evicted" else 1)
    assert sim.events.count("WorkerLost") + sim.events.count("ProcessFailed") <= 2  # the event, and the generation's reason
    assert len(sim.running()) == 2


def test_a_failure_while_no_operator_lived_is_counted_by_the_next_one() -> None:
    sim = running(3, 1)
    victim = uid_of(sim, 2)
    sim.kill_pod(victim)
    for survivor in (0, 1):
        sim.end_ranks(uid_of(sim, survivor), witness=True)
    sim.restart_operator()
    sim.settle()
    assert sim.status.restarts.pod == 1 and sim.status.restarts.total == 1
    assert sim.status.last_failure is not None and sim.status.last_failure.reason == "PodFailed"
    assert len(sim.running()) == 3


def test_a_witness_waits_for_the_cause_in_every_generation_anew() -> None:
    """The interruption may have begun long ago: the second failure's cause is looked for as patiently as the first one's."""
    sim = running(2)
    sim.end_ranks(uid_of(sim, 0))
    sim.settle(rounds=2)
    sim.tick(5.0)
    assert len(sim.running()) == 2
    sim.end_ranks(uid_of(sim, 0), witness=True)
    sim.decide()
    assert sim.status.restarts.total == 1, "nobody is blamed yet"
    sim.tick(0.05)
    sim.end_ranks(uid_of(sim, 1), exit_code=3)
    sim.decide()
    assert sim.status.last_failure is not None and sim.status.last_failure.exit_code == 3


def test_a_member_that_comes_back_in_time_is_a_member_again_and_its_later_failure_counts() -> None:
    sim = running(2)
    victim = uid_of(sim, 1)
    sim.disconnect(victim)
    sim.tick(1.0)
    sim.decide()
    assert sim.status.restarts.total == 1
    number = sim.status.rendezvous.generation
    sim.reconnect(victim)
    sim.step(8)
    sim.decide()
    assert sim.status.rendezvous.generation == number and victim in sim.workers
    sim.end_ranks(victim)
    sim.decide()
    assert sim.status.restarts.total == 2
    assert sim.status.last_failure is not None and sim.status.last_failure.reason == "ProcessFailed"


def test_two_workers_at_once_are_one_interruption() -> None:
    sim = running(3, 1)
    sim.kill_pod(uid_of(sim, 0))
    sim.kill_pod(uid_of(sim, 1))
    sim.settle()
    assert sim.status.restarts.total == 1
    assert len(sim.running()) == 3


@pytest.mark.parametrize("restarts", [0, 5])
def test_a_broken_generation_that_is_held_is_counted_once_however_often_it_is_looked_at(restarts: int) -> None:
    """Its replacement could not be made, so the generation on record stays the broken one."""
    sim = running(2)
    sim.kill_pod(uid_of(sim, 1))
    for look in range(8):
        sim.decide(rejection=Rejection("QuotaExceeded", "exceeded quota", sim.mono))
        if look < restarts:
            sim.restart_operator()
        sim.tick(1.0)
    assert sim.status.rendezvous.generation == 1 and sim.created == 2
    assert sim.status.restarts.total == 1 and len(sim.status.restarts.recent) == 1
    sim.settle()
    assert sim.status.restarts.total == 1 and len(sim.running()) == 2


def test_a_worker_that_ended_early_is_counted_once_while_it_cannot_be_replaced_for_long() -> None:
    sim = running(3, 1, maxRestarts=100, window="60s")
    sim.delete_pod(uid_of(sim, 2))
    sim.settle(rounds=1)
    early = next(w for w in sim.workers.values() if w.index == 2)
    sim._drop(early.uid)
    sim.workers[early.uid] = replace(early, phase=Phase.FAILED, exit_code=1, ended=sim.wall)
    for step in range(20, 24):
        refused = Rejection("QuotaExceeded", "exceeded quota", sim.mono)
        sim.step(step)
        sim.decide(rejection=refused)
        sim.end_ranks(uid_of(sim, 0))
        sim.decide(rejection=refused)
        for uid in list(sim.agents):
            sim.deliver(uid)
            sim.start_ranks(uid)
        sim.tick(61.0)
    assert sim.events.count("WorkerFailed") == 1
    assert (sim.status.restarts.pod, sim.status.restarts.process) == (2, 4), "the deleted pod, and the one that ended early"


def test_a_worker_that_is_evicted_before_it_joins_is_replaced_and_costs_nothing() -> None:
    sim = Simulation(1, recovery={"maxRestarts": 0})
    sim.decide()
    uid = next(iter(sim.workers))
    sim.workers[uid] = replace(sim.workers[uid], phase=Phase.FAILED, evicted="Evicted")
    sim.settle()
    assert len(sim.running()) == 1 and sim.status.restarts.total == 0


def test_workers_that_never_joined_do_not_delay_the_next_generation_of_the_others() -> None:
    sim = running(3, 1, maxRestarts=100)
    sim.delete_pod(uid_of(sim, 2))
    for _ in range(300):
        sim.decide()
        for uid, worker in list(sim.workers.items()):
            if worker.phase is Phase.PENDING:
                sim.workers[uid] = replace(worker, phase=Phase.FAILED, exit_code=1, ended=sim.wall)
        for uid in list(sim.agents):
            sim.deliver(uid)
            sim.start_ranks(uid)
        sim.tick(0.1)
    number = sim.status.rendezvous.generation
    sim.end_ranks(uid_of(sim, 0))
    sim.decide()
    assert sim.status.rendezvous.generation == number + 1


def test_a_deleted_pod_is_named_as_it_was_called_and_so_is_its_node() -> None:
    sim = running(3, 2)
    lost = sim.workers[uid_of(sim, 1)]
    sim.delete_pod(lost.uid)
    sim.decide()
    failure = sim.status.last_failure
    assert failure is not None and failure.reason == "PodDeleted"
    assert (failure.worker, failure.node) == (lost.name, "n1")
    assert f"({lost.name} on node n1)" in failure.message
