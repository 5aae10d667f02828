"""Forming and reforming: the first group, growth, leaving, scaling, and workers that are too many."""

from dataclasses import replace

import pytest

from lepton_operator.decision.membership import START_SECONDS
from lepton_operator.worker import Phase
from lepton_trainer.protocol.messages import PREPARED, RUNNING
from simulation import Simulation


def started(replicas: int, minimum: int = 1, steps: bool = True) -> Simulation:
    """A job whose group runs."""
    sim = Simulation(replicas, minimum)
    sim.settle(rounds=4)
    if steps:
        sim.step(5)
    sim.decide()
    assert len(sim.running()) == replicas
    return sim


def join(sim: Simulation, count: int) -> None:
    """Starts so many pending pods."""
    for uid in [uid for uid, w in sim.workers.items() if w.phase is Phase.PENDING][:count]:
        sim.start_pod(uid)


def uid_of(sim: Simulation, index: int) -> str:
    return next(w.uid for w in sim.workers.values() if w.index == index and not w.deleting)


def number(sim: Simulation) -> int:
    return sim.status.rendezvous.generation


def test_the_first_group_forms_at_once_when_all_have_joined() -> None:
    sim = Simulation(3, 1)
    sim.decide()
    join(sim, 2)
    sim.decide()
    assert number(sim) == 0
    join(sim, 1)
    sim.decide()
    assert (number(sim), sim.status.rendezvous.size) == (1, 3)


def test_the_first_group_waits_30_s_for_the_rest_and_then_forms_with_the_minimum() -> None:
    sim = Simulation(3, 2)
    sim.decide()
    join(sim, 1)
    sim.tick(100.0)
    sim.decide()
    sim.tick(5.0)
    sim.decide()
    assert number(sim) == 0 and "1 of at least 2" in sim.status.message
    join(sim, 1)
    assert sim.decide().wake is not None
    sim.tick(29.0)
    decided = sim.decide()
    assert number(sim) == 0 and decided.wake is not None and decided.wake <= 1.0
    sim.tick(1.0)
    sim.decide()
    assert (number(sim), sim.status.rendezvous.size) == (1, 2)


@pytest.mark.parametrize("can_stop", [False, True])
def test_a_leaving_member_is_left_out_at_once_or_after_a_stop_in_good_order(can_stop: bool) -> None:
    sim = started(3)
    if can_stop:
        for uid in sim.agents:
            sim.can_stop(uid)
    sim.leave(uid_of(sim, 1))
    sim.decide()
    assert sim.order is not None
    if can_stop:
        assert number(sim) == 1 and sim.order.stop_requested
        for uid in sim.agents:
            sim.stop_ranks(uid)
        sim.decide()
    assert number(sim) == 2 and not sim.order.stop_requested
    assert [m.worker for m in sim.order.members] == [0, 2]
    assert sim.status.restarts.recent == () and sim.status.restarts.total == 0
    assert sim.status.history[-1].reason == "WorkerLeaving"


def test_a_stop_that_nobody_follows_is_given_up_after_its_time() -> None:
    sim = started(2)
    for uid in sim.agents:
        sim.can_stop(uid)
    sim.scale(1)
    decided = sim.decide()
    assert number(sim) == 1 and decided.order is not None and decided.order.stop_requested
    sim.tick(29.9)
    assert sim.decide().wake is not None and number(sim) == 1
    sim.tick(0.2)
    sim.decide()
    assert number(sim) == 2


def test_scaling_down_stops_in_good_order_first_and_deletes_the_surplus_after() -> None:
    sim = started(3)
    for uid in sim.agents:
        sim.can_stop(uid)
    surplus = uid_of(sim, 2)
    sim.scale(2)
    decided = sim.decide()
    assert decided.delete == () and surplus in sim.workers
    for uid in sim.agents:
        sim.stop_ranks(uid)
    decided = sim.decide()
    assert number(sim) == 2 and sim.status.rendezvous.size == 2
    assert [d.worker.uid for d in decided.delete] == [surplus]
    assert decided.order is not None and decided.order.shutdown == {surplus: "removed"}
    assert sim.status.workers.active == 2


def test_scaling_back_up_in_time_keeps_the_members() -> None:
    sim = started(3)
    for uid in sim.agents:
        sim.can_stop(uid)
    sim.scale(2)
    sim.decide()
    sim.scale(3)
    decided = sim.decide()
    assert number(sim) == 1 and decided.order is not None and not decided.order.stop_requested
    assert sim.created == 3


def grown(sim: Simulation) -> None:
    """A third worker joins a running group of two."""
    sim.scale(3)
    sim.decide()
    join(sim, 1)


def test_a_group_grows_a_moment_after_the_last_one_has_joined() -> None:
    sim = started(2)
    grown(sim)
    decided = sim.decide()
    assert number(sim) == 1 and decided.wake is not None and decided.wake <= 1.0
    sim.tick(1.0)
    sim.decide()
    assert (number(sim), sim.status.rendezvous.size) == (2, 3)
    assert sim.status.history[-1].reason == "Grown" and sim.status.restarts.total == 0


def test_a_group_that_checkpoints_grows_right_after_the_next_checkpoint() -> None:
    sim = started(2)
    sim.step(10, checkpoint_step=10)
    grown(sim)
    sim.tick(2.0)
    decided = sim.decide()
    assert number(sim) == 1 and decided.wake is not None and decided.wake <= 1.0
    sim.tick(20.0)
    sim.decide()
    assert number(sim) == 1
    sim.step(20, checkpoint_step=20)
    sim.decide()
    assert number(sim) == 2


def test_a_checkpoint_is_not_waited_for_forever() -> None:
    sim = started(2)
    sim.step(10, checkpoint_step=10)
    grown(sim)
    sim.tick(2.0)
    sim.decide()
    sim.tick(58.1)
    sim.decide()
    assert number(sim) == 2


def test_a_group_that_is_about_to_end_does_not_grow_and_does_not_shrink() -> None:
    sim = started(3)
    sim.end_ranks(uid_of(sim, 0), exit_code=0)
    sim.scale(4)
    sim.decide()
    join(sim, 1)
    sim.tick(5.0)
    sim.leave(uid_of(sim, 2))
    sim.decide()
    assert number(sim) == 1


def test_of_two_pods_of_one_index_the_joined_one_stays_else_the_older() -> None:
    sim = Simulation(1)
    sim.decide()
    first = uid_of(sim, 0)
    sim.tick(5.0)
    sim.create(0)
    second = next(uid for uid in sim.workers if uid != first)
    world = dict(sim.workers)
    assert [d.worker.uid for d in sim.decide().delete] == [second], "neither has joined: the older one stays"
    sim.workers = world
    sim.start_pod(second)
    assert [d.worker.uid for d in sim.decide().delete] == [first], "the younger one has joined"


def test_the_member_stays_when_a_duplicate_of_it_joins() -> None:
    sim = started(2)
    member = uid_of(sim, 1)
    sim.create(1)
    duplicate = list(sim.workers)[-1]
    sim.workers[duplicate] = replace(sim.workers[duplicate], created=0.0)
    sim.start_pod(duplicate)
    assert [d.worker.uid for d in sim.decide().delete] == [duplicate]
    assert member in sim.workers and number(sim) == 1


def test_a_lost_connection_may_come_back_for_ten_seconds_and_then_the_pod_is_replaced() -> None:
    sim = started(2)
    victim = uid_of(sim, 1)
    sim.disconnect(victim)
    sim.tick(1.0)
    decided = sim.decide()
    assert sim.status.rendezvous.size == 1 and victim in sim.workers and sim.created == 2
    for uid in sim.agents:
        sim.deliver(uid)
    assert decided.wake is not None
    sim.tick(10.0)
    decided = sim.decide()
    assert [d.worker.uid for d in decided.delete] == [victim] and decided.create == (1,)


def test_a_worker_on_a_lost_node_is_replaced_at_once_and_not_waited_for() -> None:
    sim = started(2)
    victim = uid_of(sim, 1)
    sim.disconnect(victim)
    sim.workers[victim] = replace(sim.workers[victim], node_ready=False)
    sim.tick(1.0)
    decided = sim.decide()
    assert [(d.worker.uid, d.grace_seconds) for d in decided.delete] == [(victim, 0.0)] and decided.create == (1,)
    assert sim.status.restarts.node == 1 and sim.status.restarts.recent == ()


def test_a_silent_agent_is_not_taken_into_the_next_generation() -> None:
    sim = started(2)
    victim = uid_of(sim, 1)
    for _ in range(14):
        sim.decide(agents=[replace(a.facts(sim.mono), heard=1_000.0 if a.uid == victim else sim.mono) for a in sim.agents.values()])
        sim.tick(1.0)
    assert sim.order is not None and [m.worker for m in sim.order.members] == [0]
    assert sim.status.last_failure is not None and sim.status.last_failure.reason == "AgentSilent"


@pytest.mark.parametrize("held_up_by", [0, 1])
def test_the_member_that_holds_up_a_start_for_too_long_is_replaced_and_nobody_else(held_up_by: int) -> None:
    sim = Simulation(2)
    sim.decide()
    join(sim, 2)
    sim.decide()
    for uid, agent in sim.agents.items():
        sim.deliver(uid)
        port = 0 if held_up_by == 0 else 29_400 if agent.index == 0 else 0
        agent.state = replace(agent.state, phase=RUNNING if held_up_by == 1 and agent.index == 0 else PREPARED, store_port=port)
    guilty, innocent = uid_of(sim, held_up_by), uid_of(sim, 1 - held_up_by)
    decided = sim.decide()
    assert decided.wake is not None and decided.wake <= START_SECONDS
    sim.tick(START_SECONDS)
    decided = sim.decide()
    assert [d.worker.uid for d in decided.delete] == [guilty] and innocent in sim.workers
    assert decided.create == (held_up_by,)
    assert sim.status.last_failure is not None and sim.status.last_failure.reason == "StartTimedOut"
