"""What the user sees: conditions, state, the words of whoever refused something, progress in a column."""

from dataclasses import replace

import pytest

from lepton_operator import conditions
from lepton_operator.conditions import Condition, with_condition
from lepton_operator.decision.plan import Rejection
from lepton_operator.decision.view import duration, loss_text, rate
from lepton_operator.worker import Phase
from simulation import Simulation

QUOTA = Rejection("QuotaExceeded", 'pods "digits-1" is forbidden: exceeded quota: small, used: pods=1', 1000.0)


def pods_ready(sim: Simulation) -> Condition:
    found = conditions.find(sim.status.conditions, conditions.PODS_READY)
    assert found is not None
    return found


def test_a_refused_creation_is_quoted_in_the_condition_and_told_once_and_tried_again_after_ten_seconds() -> None:
    """kubeflow/trainer#2351: when children cannot be created, the status must say why."""
    sim = Simulation(3)
    decided = sim.decide()
    assert decided.create == (0, 1, 2) and decided.wake is not None and decided.wake <= 1.0, "it looks again soon, come what may"
    sim.workers.clear()
    tries = 0
    for second in range(60):
        at = 1000.0 + second // 10 * 10
        decided = sim.decide(rejection=replace(QUOTA, mono=at))
        sim.workers.clear()
        tries += bool(decided.create)
        assert decided.create == ()
        assert decided.wake is not None and decided.wake <= at + 10.0 - sim.mono
        sim.tick(1.0)
    decided = sim.decide(rejection=replace(QUOTA, mono=sim.mono - 10.0))
    assert decided.create == (0, 1, 2)
    assert "exceeded quota: small" in pods_ready(sim).message and pods_ready(sim).reason == "QuotaExceeded"
    assert sim.events.count("QuotaExceeded") == 1


def test_trouble_of_a_pod_is_told_in_the_words_of_the_kubelet_and_once_although_it_alternates() -> None:
    sim = Simulation(1)
    sim.decide()
    uid = next(iter(sim.workers))
    for number in range(20):
        trouble = ("ErrImagePull", "ImagePullBackOff")[number % 2]
        sim.workers[uid] = replace(sim.workers[uid], trouble=trouble, trouble_message=f"image none:1 not found ({trouble})")
        sim.decide()
        sim.tick(1.0)
    assert sim.events.count("ImagePullBackOff") == 1 and "ErrImagePull" not in sim.events
    assert pods_ready(sim).reason == "ImagePullBackOff" and "image none:1 not found" in pods_ready(sim).message
    assert len(sim.writes) <= 3


def test_an_agent_that_cannot_reach_the_coordinator_is_named_after_a_minute_without_any_news() -> None:
    sim = Simulation(1)
    sim.decide()
    uid = next(iter(sim.workers))
    sim.workers[uid] = replace(sim.workers[uid], phase=Phase.RUNNING, started=sim.wall)
    for _ in range(5):
        decided = sim.decide()
        if "AgentNotJoined" in sim.events:
            break
        assert decided.wake is not None, "nothing else would make it look"
        sim.tick(decided.wake)
    assert sim.events.count("AgentNotJoined") == 1
    assert "NetworkPolicies" in pods_ready(sim).message and sim.mono <= 1_061.0


def test_last_transition_moves_only_with_the_status_of_a_condition() -> None:
    first = with_condition((), Condition("Running", False, "Starting", "", 100.0))
    same = with_condition(first, Condition("Running", False, "Recovering", "another reason", 200.0))
    assert same[0].last_transition == 100.0 and same[0].reason == "Recovering"
    other = with_condition(same, Condition("Running", True, "Started", "", 300.0))
    assert other[0].last_transition == 300.0


def test_conditions_keep_the_moment_of_their_change_through_a_jobs_life() -> None:
    sim = Simulation(2)
    sim.settle(rounds=4)
    sim.step(1)
    sim.decide()
    accepted = conditions.find(sim.status.conditions, conditions.ACCEPTED)
    running = conditions.find(sim.status.conditions, conditions.RUNNING)
    assert accepted is not None and running is not None
    sim.tick(100.0)
    sim.step(2)
    sim.scale(2)
    sim.decide()
    assert conditions.find(sim.status.conditions, conditions.RUNNING) == replace(running, observed_generation=2)
    for uid in list(sim.agents)[:1]:
        sim.end_ranks(uid)
    sim.decide()
    stopped = conditions.find(sim.status.conditions, conditions.RUNNING)
    assert stopped is not None and not stopped.status and stopped.last_transition >= running.last_transition + 100


def test_the_last_failure_stays_until_another_one_takes_its_place() -> None:
    sim = Simulation(2)
    sim.settle(rounds=4)
    first, second = sim.agents
    sim.end_ranks(first, exit_code=3)
    sim.settle(rounds=3)
    failure = sim.status.last_failure
    assert failure is not None and failure.exit_code == 3 and sim.status.state == "Running"
    sim.settle(rounds=3)
    assert sim.status.last_failure == failure
    sim.end_ranks(second, exit_code=4)
    sim.settle(rounds=3)
    assert sim.status.last_failure is not None and sim.status.last_failure.exit_code == 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [(None, ""), ("nan", "NaN"), ("inf", "Inf"), ("-inf", "-Inf"), ("0.123456", "0.1235"), ("123456.7", "1.235e+05"), ("0.0", "0")],
)
def test_a_loss_is_shown_with_four_digits_and_what_is_not_finite_by_its_name(text: str | None, shown: str) -> None:
    assert loss_text(text) == shown


def test_a_loss_that_is_not_finite_reaches_the_status_as_text_and_rates_as_numbers() -> None:
    sim = Simulation(1)
    sim.settle(rounds=3)
    sim.step(7, loss="nan", samples_per_second=1234.5, tokens_per_second=float("nan"), total_steps=1000)
    sim.decide()
    progress = sim.body["status"]["progress"]
    assert progress["loss"] == "NaN" and progress["samplesPerSecond"] == 1234.5 and "tokensPerSecond" not in progress
    assert progress["throughput"] == "1.23k samples/s" and progress["percent"] == "0%" and progress["eta"] == "10s"


@pytest.mark.parametrize(
    ("value", "shown"), [(None, ""), (float("inf"), ""), (0.0, ""), (3.14159, "3.14"), (1234.0, "1.23k"), (2_500_000.0, "2.5M")]
)
def test_a_rate_is_shown_with_three_digits(value: float | None, shown: str) -> None:
    assert rate(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0s"), (45, "45s"), (200, "3m20s"), (7500, "2h5m"), (3600, "1h"), (356_400, "4d3h")])
def test_a_duration_is_shown_as_kubectl_shows_ages(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_progress_is_100_percent_only_at_the_end() -> None:
    sim = Simulation(1)
    sim.settle(rounds=3)
    sim.step(999, total_steps=1000)
    sim.decide()
    assert sim.status.progress.percent == "99%"


def test_a_script_that_reports_nothing_is_running_again_when_its_processes_are() -> None:
    sim = Simulation(2)
    sim.settle(rounds=4)
    sim.tick(50.0)
    sim.end_ranks(next(iter(sim.agents)))
    sim.settle(rounds=4)
    assert sim.status.state == "Running"
    assert sim.status.goodput.recoveries == 1
    recovering = sim.status.goodput.lost_seconds.get("recovering", 0.0)
    sim.tick(1000.0)
    sim.end_ranks(next(iter(sim.agents)))
    sim.decide()
    assert sim.status.goodput.lost_seconds.get("recovering", 0.0) < recovering + 5.0
    assert sim.status.goodput.productive_seconds > 1000.0
