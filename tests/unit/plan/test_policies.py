"""When enough is enough: the budget in its window, generations that get nowhere, and how long a retry waits."""

import pytest

from lepton_operator.decision.policies import retry_delay, verdict, within_window
from lepton_operator.job import Recovery
from lepton_operator.status import Incident, MicroTime

WALL = 1_700_000_000.0


def incidents(*steps: int | None, reason: str = "ProcessFailed", apart: float = 10.0, generation: int = 1) -> list[Incident]:
    """One incident for each step reached, the last of them now."""
    last = len(steps) - 1
    return [Incident(MicroTime(WALL - (last - i) * apart), reason, generation and i + generation, (), step) for i, step in enumerate(steps)]


@pytest.mark.parametrize(("failures", "allowed", "fails"), [(1, 0, True), (2, 2, False), (3, 2, True), (100, 100, False), (101, 100, True)])
def test_one_failure_more_than_max_restarts_fails_the_job(failures: int, allowed: int, fails: bool) -> None:
    said = verdict(incidents(*range(failures)), Recovery(allowed, 3600), WALL)
    assert (said is not None) == fails
    if said is not None:
        assert said.reason == "RestartBudgetExceeded" and f"allows {allowed} restarts" in said.message and "within 1 h" in said.message


def test_failures_that_have_left_the_window_do_not_count() -> None:
    old = incidents(1, 2, 3, apart=40.0)
    assert verdict(old, Recovery(2, 3600), WALL) is not None
    assert verdict(old, Recovery(2, 60), WALL) is None
    assert [i.step for i in within_window(old, Recovery(2, 60), WALL)] == [2, 3]


STUCK = [
    ((10, 10, 10, 10), "ProcessFailed", True),
    ((10, 10, 10), "ProcessFailed", False),  # the first of them had come from the start to 10
    ((5, 10, 10, 10), "ProcessFailed", False),  # and here from 5 to 10
    ((5, 10, 10, 10, 10), "ProcessFailed", True),
    ((10, 10, 10, 11), "ProcessFailed", False),
    ((0, 0, 0, 0), "ProcessFailed", True),
    ((None, None, None, None), "ProcessFailed", False),  # a script that reports nothing cannot be judged so
    ((10, 10, 10, 10), "PodFailed", False),  # no failure of the script's own
]


@pytest.mark.parametrize(("steps", "reason", "stuck"), STUCK)
def test_three_generations_in_a_row_without_a_step_forward_fail_the_job(steps: tuple[int | None, ...], reason: str, stuck: bool) -> None:
    said = verdict(incidents(*steps, reason=reason), Recovery(100, 3600), WALL)
    assert (said is not None and said.reason == "NoProgress") == stuck


@pytest.mark.parametrize(
    ("steps", "progressed", "delay"),
    [
        ((), False, 0.0),
        ((5,), False, 0.0),
        ((5, 5), False, 0.0),
        ((5, 5, 5), False, 1.0),
        ((5, 5, 5, 5), False, 2.0),
        ((None,) * 7, False, 16.0),
        ((5,) * 50, False, 30.0),
        ((5,) * 2000, False, 30.0),
        ((5,) * 50, True, 0.0),
        ((5, 5, 5, 6), False, 0.0),
    ],
)
def test_retries_are_free_at_first_and_then_wait_twice_as_long_each_time(
    steps: tuple[int | None, ...], progressed: bool, delay: float
) -> None:
    assert retry_delay(incidents(*steps), progressed) == delay
