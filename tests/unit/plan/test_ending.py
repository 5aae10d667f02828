"""How jobs end: complete or failed once and for all, and finished only when nothing runs any more."""

from dataclasses import replace

import pytest

from lepton_operator import conditions
from lepton_operator.worker import Phase
from simulation import Simulation


def ended(success: bool = True, replicas: int = 2) -> Simulation:
    """A job whose verdict has just been written."""
    sim = Simulation(replicas, recovery={"maxRestarts": 0})
    sim.settle(rounds=4)
    sim.step(5)
    sim.decide()
    for uid in sim.agents if success else list(sim.agents)[:1]:
        sim.end_ranks(uid, exit_code=0 if success else 3)
    sim.decide()
    return sim


def true(sim: Simulation, kind: str) -> bool:
    return conditions.is_true(sim.status.conditions, kind)


@pytest.mark.parametrize(
    ("success", "kind", "verdict"), [(True, conditions.COMPLETE, "complete"), (False, conditions.FAILED, "job-failed")]
)
def test_the_verdict_is_written_first_then_told_and_finished_is_true_when_nothing_runs(success: bool, kind: str, verdict: str) -> None:
    sim = ended(success)
    assert true(sim, kind) and not true(sim, conditions.FINISHED)
    assert sim.wake is not None and sim.wake <= 0.05
    decided = sim.decide()
    assert decided.order is not None and set(decided.order.shutdown.values()) == {verdict} and len(decided.order.shutdown) == 2
    assert not true(sim, conditions.FINISHED)
    for uid in list(sim.agents):
        assert not true(sim, conditions.FINISHED)
        sim.deliver(uid)
        sim.decide()
    assert true(sim, conditions.FINISHED)
    assert len(sim.workers) == 2, "ended pods stay"
    assert sim.decide().wake is None


@pytest.mark.parametrize("success", [True, False])
def test_terminal_is_terminal(success: bool) -> None:
    sim = ended(success)
    sim.settle(rounds=5)
    state, created, writes = sim.status.state, sim.created, len(sim.writes)
    assert true(sim, conditions.FINISHED)
    for uid in list(sim.workers):
        sim.delete_pod(uid)
    sim.scale(5)
    sim.restart_operator()
    sim.settle(rounds=40)
    assert (sim.status.state, sim.created) == (state, created)
    assert len(sim.writes) <= writes + 1
    assert true(sim, conditions.FINISHED)


def test_a_worker_that_appears_after_the_end_is_ended_too() -> None:
    """A creation was under way when the job ended."""
    sim = ended()
    sim.settle(rounds=5)
    sim.create(0)
    late = list(sim.workers)[-1]
    decided = sim.decide()
    assert [d.worker.uid for d in decided.delete] == [late]
    sim.create(0)
    late = list(sim.workers)[-1]
    sim.start_pod(late)
    decided = sim.decide()
    assert decided.order is not None and decided.order.shutdown == {late: "complete"}


def test_a_worker_that_no_agent_speaks_for_is_deleted_after_15_s_and_a_deaf_one_after_60_s() -> None:
    sim = ended()
    mute, deaf = sim.agents
    sim.disconnect(mute)
    sim.decide()
    sim.tick(14.0)
    assert sim.decide().delete == ()
    sim.tick(float(sim.wake or 0))
    assert [d.worker.uid for d in sim.decide().delete] == [mute]
    sim.tick(float(sim.wake or 0))
    for _ in range(10):
        sim.tick(float(sim.decide().wake or 0))
    assert deaf not in sim.workers and true(sim, conditions.FINISHED)


def test_a_new_leader_gives_agents_time_to_come_back_before_it_deletes_their_pods() -> None:
    sim = ended()
    sim.tick(100.0)
    sim.restart_operator()
    for uid in sim.agents:
        sim.disconnect(uid)
    assert sim.decide().delete == ()


def test_a_terminating_pod_of_a_lost_node_is_not_waited_for() -> None:
    sim = ended()
    for uid in list(sim.workers):
        sim.workers[uid] = replace(sim.workers[uid], deleting=True, node_ready=False)
    sim.decide()
    assert true(sim, conditions.FINISHED)


def test_one_more_failure_than_allowed_fails_the_job_and_nothing_is_created_any_more() -> None:
    sim = ended(success=False)
    assert sim.status.state == "Failed" and sim.status.reason == "RestartBudgetExceeded"
    assert "exit code 3" in sim.status.message and sim.status.completion_time == int(sim.wall)
    created = sim.created
    for uid, worker in list(sim.workers.items()):
        sim.workers[uid] = replace(worker, phase=Phase.FAILED)
    sim.settle(rounds=20)
    assert sim.created == created
    failed = conditions.find(sim.status.conditions, conditions.RUNNING)
    assert failed is not None and not failed.status


def test_results_hold_when_pods_are_collected_one_by_one() -> None:
    sim = Simulation(3)
    sim.settle(rounds=4)
    for uid in list(sim.agents):
        sim.end_ranks(uid, exit_code=0)
        sim.workers[uid] = replace(sim.workers[uid], phase=Phase.SUCCEEDED, exit_code=0)
        sim._drop(uid)
        sim.decide()
        sim.delete_pod(uid)
    sim.decide()
    assert true(sim, conditions.COMPLETE) and sim.created == 3


def linger(sim: Simulation, uid: str, exit_code: int = 0) -> None:
    """The trainer container has ended; a sidecar runs on, so the pod does."""
    phase = Phase.FAILED if exit_code else Phase.SUCCEEDED
    sim.workers[uid] = replace(sim.workers[uid], phase=phase, exit_code=exit_code, ended=sim.wall, lingering=True)
    sim._drop(uid)


@pytest.mark.parametrize("success", [True, False])
def test_a_sidecar_that_runs_for_ever_does_not_keep_a_job_from_being_finished_and_the_user_is_told(success: bool) -> None:
    sim = ended(success)
    for uid in list(sim.agents):
        linger(sim, uid, 0 if success else 1)
    assert sim.decide().delete == () and not true(sim, conditions.FINISHED)
    sim.tick(14.0)
    assert sim.decide().delete == () and not true(sim, conditions.FINISHED), "its pods still run"
    sim.tick(float(sim.wake or 0))
    decided = sim.decide()
    assert len(decided.delete) == 2 and {e.reason for e in decided.events} == {"SidecarRunsOn"}
    assert "restartPolicy: Always" in decided.events[0].message
    sim.decide()
    assert true(sim, conditions.FINISHED)


def test_a_deleted_pod_whose_sidecar_takes_its_time_is_waited_for_and_not_deleted_again() -> None:
    sim = ended()
    for uid in list(sim.agents):
        linger(sim, uid)
        sim.mark_deleting(uid)
    sim.tick(100.0)
    assert sim.decide().delete == () and not true(sim, conditions.FINISHED)


@pytest.mark.parametrize("minimum", [1, 2])
def test_the_pod_of_a_failed_worker_is_deleted_although_its_sidecar_runs_on(minimum: int) -> None:
    """It holds the room that its replacement needs, whether the group goes on without it or waits for it."""
    sim = Simulation(2, minimum)
    sim.settle(rounds=4)
    sim.step(5)
    lost = list(sim.agents)[1]
    linger(sim, lost, 1)
    assert lost not in {d.worker.uid for d in sim.decide().delete}
    sim.tick(16.0)
    assert lost in {d.worker.uid for d in sim.decide().delete}
    assert sim.status.restarts.total == 1, "its end was counted once"


def test_a_worker_that_succeeded_is_kept_while_its_group_goes_on_and_goes_when_the_group_breaks() -> None:
    """A new leader must be able to tell that it had ended well."""
    sim = Simulation(2)
    sim.settle(rounds=4)
    first, second = list(sim.agents)
    sim.end_ranks(first, exit_code=0)
    sim.decide()
    linger(sim, first)
    sim.tick(60.0)
    assert sim.decide().delete == ()
    sim.restart_operator()
    assert sim.decide().delete == ()
    sim.kill_pod(second)
    assert [d.worker.uid for d in sim.decide().delete] == [first]


def test_a_new_leader_still_knows_what_a_finished_job_spent() -> None:
    sim = ended()
    sim.settle(rounds=5)
    spent = sim.operators[0].memory.account.seconds
    assert sum(spent.values()) > 0
    sim.restart_operator()
    sim.decide()
    assert {cause: round(seconds) for cause, seconds in sim.operators[0].memory.account.seconds.items()} == {
        cause: round(seconds) for cause, seconds in spent.items()
    }
