"""A group does not wait for a newcomer's imports where it can go on without it."""

from dataclasses import replace

from lepton_operator.worker import Phase
from simulation import Simulation


def test_a_worker_that_still_imports_is_left_out_of_a_generation_that_is_due_for_another_reason() -> None:
    sim = Simulation(replicas=3, minimum=1)
    sim.settle(rounds=3)
    victims = sorted(sim.agents, key=lambda uid: sim.agents[uid].index)
    sim.delete_pod(victims[0])
    sim.decide()
    (newcomer,) = [uid for uid in sim.workers if uid not in victims]
    sim.start_pod(newcomer)
    sim.agents[newcomer].state = replace(sim.agents[newcomer].state, warming=True)
    for uid in victims[1:]:
        sim.deliver(uid)
        sim.start_ranks(uid)
    sim.delete_pod(victims[1])
    sim.decide()
    assert sim.order is not None
    assert [member.uid for member in sim.order.members] == [victims[2]]

    sim.agents[newcomer].state = replace(sim.agents[newcomer].state, warming=False)
    sim.settle(rounds=5)
    assert len(sim.running()) == 3


def test_a_worker_that_ends_before_the_kubelet_calls_it_running_is_not_deleted() -> None:
    sim = Simulation(replicas=2)
    sim.settle(rounds=3)
    for uid, worker in sim.workers.items():
        sim.workers[uid] = replace(worker, phase=Phase.PENDING)  # what the cache still says
        sim.end_ranks(uid, 0)
    sim.decide()
    for uid in sim.agents:
        sim.disconnect(uid)
    assert sim.decide().delete == ()
    assert len(sim.workers) == 2
