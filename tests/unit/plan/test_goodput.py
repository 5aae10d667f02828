"""Every second is accounted for, also over failures, restarts of the operator and recomputed steps."""

import pytest

from lepton_operator.decision.goodput import Account, Counters, resume
from lepton_operator.worker import Agent
from lepton_trainer.protocol.messages import Progress, State
from simulation import Simulation


def stepping(sim: Simulation, first: int, count: int, seconds: float = 1.0) -> None:
    for step in range(first, first + count):
        sim.step(step)
        sim.decide()
        sim.tick(seconds)


def trained(steps: int, minimum: int | None = None) -> Simulation:
    """Two workers that have made so many steps, one a second."""
    sim = Simulation(2, minimum)
    sim.settle(rounds=4)
    stepping(sim, 1, steps)
    return sim


def fail_one(sim: Simulation, rounds: int = 2) -> str:
    """The ranks of one agent fail, and the next generation is made; the agent's UID."""
    victim = next(iter(sim.agents))
    sim.end_ranks(victim)
    sim.settle(rounds=rounds)
    return victim


def total(sim: Simulation) -> float:
    goodput = sim.operators[0].memory.account.view()
    return goodput.productive_seconds + sum(goodput.lost_seconds.values())


def test_the_seconds_of_a_job_sum_to_the_wall_clocks() -> None:
    sim = trained(20)
    fail_one(sim, rounds=3)
    stepping(sim, 15, 30)
    lost = sim.operators[0].memory.account.view().lost_seconds
    assert lost["recovering"] > 0 and 5.0 <= lost["recomputing"] <= 7.0, "steps 15 to 20, a second each"
    sim.restart_operator()
    sim.decide()
    sim.decide()
    stepping(sim, 45, 5)
    sim.decide()
    assert total(sim) == pytest.approx(sim.wall - 1_700_000_000.0, abs=0.01)


def test_training_that_no_leader_watched_was_productive_if_it_went_on() -> None:
    sim = trained(3)
    sim.tick(100.0)
    sim.step(200)
    sim.restart_operator()
    sim.decide()
    assert sim.operators[0].memory.account.seconds["productive"] > 100.0


def test_time_that_no_leader_watched_and_nobody_trained_is_called_unobserved() -> None:
    sim = trained(0)
    sim.tick(100.0)
    for uid in list(sim.workers):
        sim.delete_pod(uid)
    sim.restart_operator()
    sim.decide()
    assert sim.operators[0].memory.account.seconds["unobserved"] > 100.0


def test_recovery_is_measured_from_the_first_evidence_to_the_first_step() -> None:
    sim = trained(10, minimum=1)
    sim.disconnect(list(sim.agents)[1])
    sim.tick(0.3)
    sim.decide()  # judged lost 0.3 s after its connection broke
    for uid in sim.agents:
        sim.deliver(uid)
        sim.start_ranks(uid)
    sim.tick(0.5)
    sim.step(8)
    sim.tick(0.2)  # the news of it takes a while
    sim.decide()
    goodput = sim.status.goodput
    assert goodput.recoveries == 1 and goodput.mean_recovery_seconds == pytest.approx(0.8, abs=0.01)
    assert (goodput.recomputed_steps, goodput.recomputed_samples) == (3, 96), "steps 8, 9 and 10 of 32 samples"
    assert "Recovered" in sim.events


def test_two_failures_before_a_step_are_one_interruption_that_began_with_the_first() -> None:
    sim = trained(10)
    fail_one(sim)
    fail_one(sim)
    sim.step(10)
    sim.decide()
    assert sim.status.goodput.recoveries == 1
    assert sim.status.goodput.mean_recovery_seconds == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("late", [False, True])
def test_steps_of_a_generation_that_soon_died_are_counted_and_only_those(late: bool) -> None:
    """The second generation makes steps 8 and 9 of 10 again; that it did is heard with its end, or only when the third is made."""
    sim = trained(10)
    victim = fail_one(sim)
    before = {uid: agent.progress for uid, agent in sim.agents.items()}
    sim.step(8)
    sim.step(9)
    heard = {uid: agent.progress for uid, agent in sim.agents.items()}
    sim.end_ranks(victim)
    if late:
        for uid, agent in sim.agents.items():
            agent.progress = before[uid]
        sim.decide()
        for uid, agent in sim.agents.items():
            agent.progress = heard[uid]
    sim.settle(rounds=2)
    assert sim.operators[0].memory.account.recomputed_steps == 3, "the second began behind steps 8, 9 and 10"
    sim.step(8)
    sim.decide()
    assert sim.operators[0].memory.account.recomputed_steps == 5, "the third began behind steps 8 and 9"


def test_another_leader_counts_no_step_again() -> None:
    sim = trained(10)
    fail_one(sim)
    stepping(sim, 8, 5)
    sim.restart_operator()
    stepping(sim, 13, 5)
    assert sim.operators[0].memory.account.recomputed_steps == 3


def test_an_account_survives_its_way_through_the_status() -> None:
    account = Account().advance("starting", 10.0).advance("productive", 15.0).advance("recovering", 35.0).advance("", 36.0)
    account = account.recovered(0.5).recovered(1.5).recomputed(7, 224)
    view = account.view()
    assert view.ratio == "0.769" and view.mean_recovery_seconds == 1.0
    assert resume(view).view() == view


def speaker(uid: str, steps: int, nonfinite: int = 0) -> Agent:
    progress = Progress(steps_total=steps, samples_total=steps * 32.0, nonfinite_total=nonfinite)
    return Agent(0, uid, "boot", "host", 1, State(1), progress)


def test_counters_add_what_each_speaker_counted_since_it_was_looked_at_first_and_never_fall() -> None:
    counters = Counters().observe(speaker("a", 10), fresh=True)
    counters = counters.observe(speaker("a", 15), fresh=False)
    assert (counters.steps, counters.samples) == (15, 480.0)
    counters = counters.observe(speaker("b", 100), fresh=False)
    assert counters.steps == 15, "what another one counted before is not this job's news"
    counters = counters.observe(speaker("b", 103, nonfinite=2), fresh=False)
    assert (counters.steps, counters.nonfinite) == (18, 2)
    assert counters.observe(speaker("b", 1), fresh=False).steps == 18
