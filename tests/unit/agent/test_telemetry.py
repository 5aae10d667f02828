"""Progress over generations, rates, numbers out of logs, and the text that Prometheus reads."""

import time

from lepton_trainer.agent.telemetry import LogMatcher, Meter
from lepton_trainer.protocol.frames import encode
from lepton_trainer.protocol.messages import Telemetry
from lepton_trainer.protocol.patterns import check
from lepton_trainer.protocol.slot import SIZE, SlotReader
from lepton_trainer.report import Reporter


class Ticking:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def slot(clock: Ticking) -> tuple[Reporter, SlotReader]:
    buffer = bytearray(SIZE)
    return Reporter(buffer, clock), SlotReader(buffer)


def test_counters_go_on_over_generations_and_levels_stay_until_the_next_report() -> None:
    clock = Ticking()
    meter = Meter(clock)
    first, reader = slot(clock)
    meter.begin(1, [reader], None)
    for step in (1, 2, 3):
        clock.now += 1
        first.report(step=step, loss=0.5, samples=10, metrics={"accuracy": 0.9})
    assert meter.progress().first_step == 1
    meter.end()
    second, reader = slot(clock)
    meter.begin(2, [reader], None)
    between = meter.progress()
    assert (between.step, between.loss, between.samples_total, between.steps_total) == (3, "0.5", 30, 3)
    assert (between.first_step, between.samples_per_second, between.step_age) == (None, None, None)
    clock.now += 1
    second.report(step=2, loss=0.25, samples=10)
    after = meter.progress()
    assert (after.generation, after.step, after.loss, after.samples_total, after.steps_total) == (2, 2, "0.25", 40, 4)
    assert (after.first_step, after.first_step_time, after.metrics) == (2, clock.now, {"accuracy": "0.9"})


def test_a_new_round_begins_without_the_levels_of_the_last_one_and_its_counters_go_on() -> None:
    clock = Ticking()
    meter = Meter(clock)
    first, reader = slot(clock)
    meter.begin(1, [reader], None)
    clock.now += 1
    first.report(step=100, total_steps=100, loss=0.5, samples=10, metrics={"accuracy": 0.9}, checkpoint="/c")
    meter.end()
    meter.new_round()
    second, reader = slot(clock)
    meter.begin(2, [reader], None)
    between = meter.progress()
    assert (between.step, between.total_steps, between.loss, between.metrics, between.checkpoint_step) == (None, None, None, {}, None)
    assert (between.generation, between.steps_total, between.samples_total, between.reported) == (2, 1, 10, True)
    clock.now += 1
    second.report(step=1, samples=10)
    assert (meter.progress().step, meter.progress().steps_total, meter.progress().samples_total) == (1, 2, 20)


def test_metrics_of_ever_new_names_in_each_generation_do_not_make_messages_grow() -> None:
    clock = Ticking()
    meter = Meter(clock)
    for generation in range(1, 101):
        reporter, reader = slot(clock)
        meter.begin(generation, [reader], None)
        reporter.report(step=generation, metrics={f"round-{generation}/{name}": 1.0 for name in range(40)})
        told = meter.progress().metrics
    assert len(told) <= 64 and len(encode(Telemetry(meter.progress()))) < 8192
    assert told["round-100/39"] == "1.0", "the newest are kept"


def test_the_rate_is_taken_between_steps_and_falls_when_they_stop() -> None:
    clock = Ticking()
    meter = Meter(clock)
    reporter, reader = slot(clock)
    meter.begin(1, [reader], None)
    reporter.report(step=0, samples=0)
    for step in range(1, 41):
        clock.now += 0.5
        reporter.report(step=step, samples=32, tokens=320)
        meter.progress()
    assert abs((meter.progress().samples_per_second or 0) - 64) < 1e-6
    assert abs((meter.progress().tokens_per_second or 0) - 640) < 1e-6
    assert meter.progress().step_seconds == 0.5
    clock.now += 30
    assert (meter.progress().samples_per_second or 0) < 20 and meter.progress().step_age == 30


def test_the_lowest_rank_that_reports_is_read() -> None:
    clock = Ticking()
    meter = Meter(clock)
    (_, silent), (reporter, reader) = slot(clock), slot(clock)
    meter.begin(1, [silent, reader], None)
    assert not meter.progress().reported
    reporter.report(step=5, loss=1.0)
    assert meter.progress().step == 5 and meter.progress().reported


def test_a_loss_that_is_not_finite_travels_as_text() -> None:
    clock = Ticking()
    meter = Meter(clock)
    reporter, reader = slot(clock)
    meter.begin(1, [reader], None)
    reporter.report(step=1, loss=float("nan"))
    assert (meter.progress().loss, meter.progress().nonfinite_total) == ("nan", 1)


def test_notices_are_the_newest_of_each_reason_over_generations_and_come_before_any_report() -> None:
    clock = Ticking()
    meter = Meter(clock)
    first, reader = slot(clock)
    meter.begin(1, [reader], None)
    first.notice("CheckpointDamaged", "step 3 is not used")
    assert [(n.generation, n.number, n.reason) for n in meter.progress().notices] == [(1, 1, "CheckpointDamaged")]
    for step in (4, 5):
        first.notice("CheckpointFailed", f"step {step} is not saved")
    meter.end()
    second, reader = slot(clock)
    meter.begin(2, [reader], None)
    second.report(step=1, metrics={"accuracy": 0.5})
    second.notice("CheckpointDamaged", "ö" * 4000)
    kept = meter.progress().notices
    assert [(n.generation, n.number, n.reason) for n in kept] == [(1, 3, "CheckpointFailed"), (2, 1, "CheckpointDamaged")]
    assert kept[0].message == "step 5 is not saved" and kept[1].message.endswith("ö...")
    assert meter.progress().metrics == {"accuracy": "0.5"}, "a long notice pushes nothing else out"
    for number in range(10):
        second.notice(f"Reason{'ABCDEFGHIJ'[number]}", "x" * 1000)
    assert [n.reason for n in meter.progress().notices] == ["ReasonG", "ReasonH", "ReasonI", "ReasonJ"]
    assert len(encode(Telemetry(meter.progress()))) < 4096


def matcher(*patterns: tuple[str, str]) -> tuple[LogMatcher, list[str]]:
    said: list[str] = []
    return LogMatcher([(name, check(name, pattern)) for name, pattern in patterns], said.append), said


def test_numbers_come_out_of_the_log_of_a_script_that_reports_nothing() -> None:
    found, _ = matcher(("step", r"step (\d+)"), ("loss", r"loss ([\d.]+|nan)"), ("samples_per_second", r"([\d.]+) img/s"))
    meter = Meter()
    meter.begin(1, [], found)
    for line in ("loss 9.0", "step 1 loss 2.0", "nothing", "step 2", "loss 1.5 at 640.5 img/s"):
        found.line(line)
    progress = meter.progress()
    assert (progress.step, progress.loss, progress.steps_total, progress.samples_per_second) == (2, "1.5", 2, 640.5)
    assert not progress.reported


def test_a_pattern_that_stalls_is_interrupted_dropped_and_named() -> None:
    found, said = matcher(("loss", r"(\d+)\s*\d*\s*\d*\s*\d*x"), ("step", r"step (\d+)"))
    start = time.monotonic()
    found.line("1" * 5000)
    assert time.monotonic() - start < 1
    assert len(said) == 1 and "the pattern for loss" in said[0]
    found.line("step 3 " + "1" * 1000)
    assert found.slot.snapshot().step == 3


def test_numbers_that_json_cannot_carry_never_reach_a_message() -> None:
    clock = Ticking()
    for value in (float("inf"), float("-inf"), float("nan"), 1e300):
        reporter, reader = slot(clock)
        meter = Meter(clock)
        meter.begin(1, [reader], None)
        clock.now += 1
        reporter.report(step=value, loss=value, samples=value, tokens=value, total_steps=value)  # type: ignore[arg-type]
        encode(Telemetry(meter.progress()))
        assert meter.progress().loss == repr(value)


def test_a_rate_in_the_log_that_is_no_finite_number_is_passed_over() -> None:
    matcher = LogMatcher([("samples_per_second", check("samples_per_second", r"rate=(\S+)"))], lambda _: None)
    matcher.line("rate=12.5")
    matcher.line("rate=inf")
    matcher.line("rate=nan")
    assert matcher.samples_per_second == 12.5
