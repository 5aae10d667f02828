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
