"""Two installations on one cluster: the first write claims a job, others leave it alone while the claimant lives."""

from lepton_operator import conditions
from simulation import Simulation


def test_the_first_status_write_claims_the_job() -> None:
    sim = Simulation(1)
    decided = sim.decide()
    assert decided.status is not None and decided.status.manager == "lepton/one"
    assert conditions.is_true(decided.status.conditions, conditions.ACCEPTED)


def test_another_installation_says_once_that_it_leaves_the_job_alone_and_does_nothing() -> None:
    sim = Simulation(1)
    sim.decide()
    said: list[str] = []
    for _ in range(5):
        decided = sim.decide(which=1, manager="lepton/two")
        assert decided.status is None and decided.order is None and not decided.create and not decided.delete
        assert decided.wake is not None and decided.wake >= 10.0
        said += [event.reason for event in decided.events]
    assert said == ["ClaimedByAnother"]


def test_a_job_whose_claimant_is_long_gone_is_taken_over_and_that_is_said_once() -> None:
    sim = Simulation(2)
    sim.settle(rounds=4)
    for _ in range(3):
        sim.decide(which=1, manager="lepton/two", claimant_gone=True)
    assert sim.status.manager == "lepton/two" and sim.status.rendezvous.generation == 1
    assert sim.events.count("Claimed") == 1
    decided = sim.decide(which=0)
    assert decided.status is None and decided.order is None


def taken_over(replicas: int = 2, minimum: int | None = None) -> Simulation:
    """A group that trains, whose installation is dead; its agents do not know the one that has just taken it over."""
    sim = Simulation(replicas, minimum)
    sim.settle(rounds=4)
    sim.step(5)
    sim.decide()
    for uid in sim.agents:
        sim.disconnect(uid)
    return sim


def take(sim: Simulation) -> list[str]:
    """One look of the new owner, to whom only those that are back have ever spoken; the UIDs that it deletes."""
    known = [a.facts(sim.mono) for a in sim.agents.values() if a.connected]
    changes = {"manager": "lepton/two", "claimant_gone": sim.status.manager == "lepton/one", "agents": known}
    return [d.worker.uid for d in sim.decide(which=1, **changes).delete]


def test_agents_of_a_job_that_was_taken_over_have_time_to_hear_of_it_and_train_on() -> None:
    sim = taken_over(3, minimum=1)
    for uid in sim.agents:
        for _ in range(5):
            assert take(sim) == []
            sim.tick(10.0)
        sim.reconnect(uid)
    take(sim)
    assert sim.status.manager == "lepton/two" and sim.status.rendezvous.generation == 1
    assert sim.created == 3


def test_a_worker_that_never_hears_of_the_new_owner_is_replaced() -> None:
    sim = taken_over(3, minimum=1)
    first, *others = sim.agents
    take(sim)
    sim.reconnect(first)
    for _ in range(18):
        assert take(sim) == []
        sim.tick(10.0)
    assert take(sim) == others
    take(sim)
    assert sim.created == 5 and first in sim.workers
