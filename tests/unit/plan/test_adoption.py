"""A new leader: it rebuilds the generation from what the agents report and goes on, or makes the next one."""

from dataclasses import replace

import pytest

from lepton_operator import conditions
from lepton_operator.worker import Phase
from lepton_trainer.protocol.messages import PREPARED, SUCCEEDED
from simulation import Simulation


def running(replicas: int = 3, minimum: int | None = 1) -> Simulation:
    sim = Simulation(replicas, minimum)
    sim.settle(rounds=4)
    sim.step(5)
    sim.decide()
    sim.decide()
    assert len(sim.running()) == replicas
    return sim


def uids(sim: Simulation) -> list[str]:
    return [agent.uid for agent in sorted(sim.agents.values(), key=lambda a: a.index)]


def number(sim: Simulation) -> int:
    return sim.status.rendezvous.generation


def test_a_generation_that_all_report_goes_on_undisturbed() -> None:
    sim = running()
    before, writes = sim.order, len(sim.writes)
    sim.restart_operator()
    decided = sim.decide()
    assert number(sim) == 1 and sim.created == 3 and not decided.create and not decided.delete
    assert sim.order is not None and before is not None
    assert (sim.order.number, sim.order.digest, sim.order.members) == (before.number, before.digest, before.members)
    assert len(sim.writes) == writes, "nothing has changed, so nothing is written"
    assert sim.status.state == "Running"


def test_while_agents_still_return_nothing_is_decided_and_the_status_stays_as_it_was() -> None:
    sim = running()
    first, writes = uids(sim)[0], len(sim.writes)
    away = sim.agents.pop(first)  # not heard of by the new coordinator
    sim.restart_operator()
    for _ in range(9):
        decided = sim.decide()
        assert decided.wake is not None and 0.1 <= decided.wake <= 1.0
        assert not decided.create and not decided.delete
        sim.tick(1.0)
    assert len(sim.writes) == writes and sim.status.state == "Running"
    sim.agents[first] = away
    sim.decide()
    assert number(sim) == 1 and sim.order is not None and sim.order.number == 1


def test_who_does_not_return_in_time_is_left_out_of_the_next_generation() -> None:
    sim = running()
    del sim.agents[uids(sim)[0]]
    sim.restart_operator()
    sim.tick(11.0)
    sim.decide()
    assert number(sim) == 2 and sim.status.rendezvous.size == 2
    assert sim.status.history[-1].reason == "LeaderChanged"


def test_a_group_that_steps_on_proves_that_the_member_which_cannot_reach_the_new_leader_lives() -> None:
    sim = running()
    del sim.agents[uids(sim)[0]]
    sim.restart_operator()
    for step in range(6, 40):
        sim.step(step)
        sim.decide()
        sim.tick(1.0)
    assert number(sim) == 1
    sim.tick(10.0)
    sim.decide()
    assert number(sim) == 2, "its steps have stopped"


def test_a_generation_that_is_not_started_everywhere_is_replaced_by_the_next() -> None:
    sim = running()
    agent = sim.agents[uids(sim)[1]]
    agent.state = replace(agent.state, phase=PREPARED)
    sim.restart_operator()
    sim.decide()
    assert number(sim) == 2


def test_members_that_report_another_digest_are_not_the_generation_on_record() -> None:
    sim = running()
    agent = sim.agents[uids(sim)[1]]
    agent.state = replace(agent.state, digest="another")
    sim.restart_operator()
    sim.decide()
    assert number(sim) == 2


def test_a_number_is_never_lower_than_what_an_agent_has_seen() -> None:
    """An etcd that was restored has forgotten generations that agents have run."""
    sim = running()
    agent = sim.agents[uids(sim)[2]]
    agent.state = replace(agent.state, highest=41, digest="another")
    sim.restart_operator()
    sim.decide()
    assert number(sim) == 42


@pytest.mark.parametrize("index", [0, 1, 2])
def test_members_that_have_succeeded_and_ended_belong_to_the_adopted_generation(index: int) -> None:
    sim = running()
    gone = uids(sim)[index]
    sim.end_ranks(gone, exit_code=0)
    sim.decide()
    sim.workers[gone] = replace(sim.workers[gone], phase=Phase.SUCCEEDED, exit_code=0, ended=sim.wall)
    sim._drop(gone)
    sim.dead_agents.clear()
    before = sim.order
    sim.restart_operator()
    decided = sim.decide()
    assert number(sim) == 1 and not decided.create
    assert sim.order is not None and before is not None
    assert (sim.order.digest, sim.order.world_size) == (before.digest, before.world_size)
    assert [m.rank_offset for m in sim.order.members] == [m.rank_offset for m in before.members]
    for uid in uids(sim):
        sim.end_ranks(uid, exit_code=0)
    sim.decide()
    assert conditions.is_true(sim.status.conditions, conditions.COMPLETE)


def test_a_job_whose_workers_all_succeeded_while_no_operator_lived_is_complete() -> None:
    sim = running()
    for uid in uids(sim):
        sim.workers[uid] = replace(sim.workers[uid], phase=Phase.SUCCEEDED, exit_code=0, ended=sim.wall)
        sim._drop(uid)
    sim.dead_agents.clear()
    sim.restart_operator()
    sim.decide()
    assert conditions.is_true(sim.status.conditions, conditions.COMPLETE)
    assert sim.created == 3


def test_a_coordinator_that_restarts_disturbs_nothing_while_its_agents_come_back() -> None:
    sim = running()
    sim.restart_coordinator()
    writes = len(sim.writes)
    for uid in uids(sim):
        for _ in range(6):
            decided = sim.decide()
            assert not decided.create and not decided.delete
            sim.tick(0.5)
        sim.reconnect(uid)
    sim.decide()
    assert number(sim) == 1 and sim.status.state == "Running"
    assert {w.workers.active for w in sim.writes[writes:]} <= {3}, "only progress was written"


def test_a_member_that_succeeded_stays_so_when_its_pod_and_its_agent_are_forgotten() -> None:
    sim = running()
    for uid in uids(sim):
        sim.end_ranks(uid, exit_code=0)
        if not conditions.is_true(sim.status.conditions, conditions.COMPLETE):
            assert sim.agents[uid].state.phase == SUCCEEDED
            sim.decide()
            sim.delete_pod(uid)
            sim.dead_agents.clear()
            sim.decide()
    sim.decide()
    assert conditions.is_true(sim.status.conditions, conditions.COMPLETE)
    assert sim.created == 3 and sim.status.restarts.total == 0
