"""What of the supervisor can be judged without a process: how often it looks for a group's first step."""

from lepton_trainer.agent.supervisor import first_steps_pause


def looks_within(seconds: float) -> int:
    elapsed, looks = 0.0, 0
    while elapsed < seconds:
        elapsed, looks = elapsed + first_steps_pause(elapsed), looks + 1
    return looks


def test_a_quick_script_is_looked_at_twenty_times_a_second() -> None:
    assert 19 <= looks_within(1.0) <= 21


def test_a_script_that_never_reports_is_looked_at_ever_more_rarely() -> None:
    assert looks_within(24 * 3600.0) - looks_within(60.0) < 500
