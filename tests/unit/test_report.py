"""What a script reports reaches the agent through memory alone, and stopping is agreed on through it."""

import math
import mmap
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lepton_trainer import report as module
from lepton_trainer.protocol import slot as s
from lepton_trainer.report import Reporter


class Ticking:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def pair() -> tuple[Reporter, s.SlotReader, Ticking]:
    buffer, clock = bytearray(s.SIZE), Ticking()
    return Reporter(buffer, clock), s.SlotReader(buffer), clock


def test_counters_add_up_and_levels_are_the_last() -> None:
    reporter, reader, clock = pair()
    assert reader.snapshot() == s.Snapshot()
    for step in range(1, 4):
        clock.now += 0.5
        reporter.report(step=step, loss=1 / step, samples=10, tokens=100, total_steps=3)
    seen = reader.snapshot()
    assert (seen.step, seen.steps, seen.samples, seen.tokens, seen.total_steps) == (3, 3, 30, 300, 3)
    assert (seen.loss, seen.first_step, seen.first_time, seen.time) == (1 / 3, 1, 1000.5, 1001.5)
    assert seen.recent == (0.5, 0.5) and seen.seconds == 1.0 and sum(seen.buckets) == 2
    assert seen.buckets[s.STEP_BUCKETS.index(0.5)] == 2


def test_steps_between_two_reports_are_counted_and_a_resume_goes_back() -> None:
    reporter, reader, clock = pair()
    reporter.report(step=10)
    clock.now += 5
    reporter.report(step=20)
    assert (reader.snapshot().steps, reader.snapshot().recent) == (11, (0.5,))
    reporter.report(step=15)
    assert (reader.snapshot().step, reader.snapshot().steps) == (15, 12)


def test_a_second_report_of_a_step_counts_it_once() -> None:
    reporter, reader, _ = pair()
    reporter.report(step=1, samples=4)
    reporter.report(step=1, metrics={"accuracy": 0.5}, checkpoint="/x/step-1")
    seen = reader.snapshot()
    assert (seen.steps, seen.samples, seen.metrics, seen.checkpoint, seen.checkpoint_step) == (1, 4, {"accuracy": "0.5"}, "/x/step-1", 1)


def test_a_checkpoint_that_took_its_time_is_that_of_its_own_step() -> None:
    reporter, reader, _ = pair()
    for step in (40, 41, 42):
        reporter.report(step=step)
    reporter.report(checkpoint="/x/step-40", checkpoint_step=40)
    assert (reader.snapshot().step, reader.snapshot().checkpoint_step, reader.snapshot().steps) == (42, 40, 3)


def test_a_notice_gives_way_to_metrics_and_path() -> None:
    reporter, reader, _ = pair()
    for reason in ("CheckpointFailed", "Resumed", "CheckpointDamaged"):
        reporter.notice(reason, "x" * 1000)
    assert [reason for _, reason, _ in reader.notices()] == ["CheckpointFailed", "Resumed", "CheckpointDamaged"]
    path = "/" + "y" * 1900
    reporter.report(step=1, metrics={f"figure-{number}": number for number in range(50)}, checkpoint=path)
    assert reader.snapshot().checkpoint == path and len(reader.snapshot().metrics) == 50
    assert [reason for _, reason, _ in reader.notices()] == ["CheckpointDamaged"], "the newest has the room that is left"


def test_a_loss_that_is_not_finite_is_counted_and_told() -> None:
    reporter, reader, _ = pair()
    for loss in (1.0, math.nan, math.inf):
        reporter.report(loss=loss)
    seen = reader.snapshot()
    assert (seen.loss, seen.nonfinite, seen.steps, seen.step) == (math.inf, 2, 3, None)


def test_a_loss_on_a_gpu_is_never_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    monkeypatch.setattr(module._GpuLoss, "look", lambda self, loss: looked.append(loss))
    reporter, reader, _ = pair()
    loss = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    reporter.report(step=1, loss=loss)
    assert looked == [loss] and reader.snapshot().loss is None


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_trainer.report._said", False)


def test_a_name_that_does_not_fit_is_left_out_and_the_others_stay(unsaid: None, capsys: pytest.CaptureFixture[str]) -> None:
    reporter, reader, _ = pair()
    reporter.report(step=1, metrics={"a": 1})
    reporter.report(step=2, metrics={"x" * s.TEXT_LIMIT: 1, "b": 2})
    assert reader.snapshot().metrics == {"a": "1.0", "b": "2.0"} and reader.snapshot().step == 2
    assert capsys.readouterr().err.count("is left out") == 1


@pytest.mark.parametrize("length", [3, s.METRIC_NAME_LIMIT - 10])
def test_ever_new_metrics_push_the_oldest_out_which_is_said_once_and_cost_no_checkpoint(
    length: int, unsaid: None, capsys: pytest.CaptureFixture[str]
) -> None:
    reporter, reader, _ = pair()
    for step in range(1, 2001):
        reporter.report(step=step, metrics={f"loss/{step:05d}".ljust(length, "x"): step, "accuracy": 0.5})
    reporter.report(step=2001, checkpoint="/checkpoints/" + "c" * 1500)
    seen = reader.snapshot()
    assert 2 < len(seen.metrics) <= s.METRICS_LIMIT
    assert seen.metrics["accuracy"] == "0.5" and seen.metrics["loss/02000".ljust(length, "x")] == "2000.0"
    assert len(seen.checkpoint) > 1500 and seen.checkpoint_step == 2001
    assert capsys.readouterr().err.count("more metrics than can be kept") == 1


def test_a_path_that_is_too_long_to_be_shown_costs_no_metric(unsaid: None, capsys: pytest.CaptureFixture[str]) -> None:
    reporter, reader, _ = pair()
    reporter.report(step=1, checkpoint="/" + "c" * 4000, metrics={"a": 1})
    seen = reader.snapshot()
    assert (seen.checkpoint_step, seen.checkpoint, seen.metrics) == (1, "", {"a": "1.0"})
    assert "too long to be shown" in capsys.readouterr().err


def test_a_reader_never_sees_half_a_report() -> None:
    buffer = mmap.mmap(-1, s.SIZE)
    reporter, reader = Reporter(buffer), s.SlotReader(buffer)
    done = threading.Event()

    def write() -> None:
        for step in range(1, 20_000):
            reporter.report(step=step, loss=float(step), samples=1)
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not done.is_set():
        seen = reader.snapshot()
        assert seen.step is None or (seen.loss == seen.step == seen.samples)
    writer.join()


def test_outside_lepton_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LEPTON_REPORT_FILE", raising=False)
    monkeypatch.delenv("LEPTON_CHECKPOINT_DIR", raising=False)
    monkeypatch.setattr(module, "_looked", False)
    monkeypatch.setattr(module, "_reporter", None)
    module.report(step=1, loss=object())
    assert module.should_stop() is False and module.checkpoint_dir() is None


def test_the_checkpoint_folder_is_made_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LEPTON_CHECKPOINT_DIR", str(tmp_path / "digits" / "round-2"))
    assert module.checkpoint_dir() == str(tmp_path / "digits" / "round-2") and (tmp_path / "digits" / "round-2").is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("LEPTON_CHECKPOINT_DIR", str(tmp_path / "file" / "round-2"))
    assert module.checkpoint_dir() == str(tmp_path / "file" / "round-2"), "whoever writes there is told"


@pytest.mark.parametrize("broken", ["missing", "short"])
def test_a_broken_report_file_and_wrong_values_raise_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str) -> None:
    path = tmp_path / "report"
    if broken == "short":
        path.write_bytes(b"")
    monkeypatch.setenv("LEPTON_REPORT_FILE", str(path))
    monkeypatch.setattr(module, "_looked", False)
    monkeypatch.setattr(module, "_reporter", None)
    module.report(step=1)
    path.write_bytes(bytes(s.SIZE))
    monkeypatch.setattr(module, "_looked", False)
    module.report(step="three", loss="many", metrics=7)  # type: ignore[arg-type]
    module.report(step=4)
    assert s.SlotReader(bytearray(path.read_bytes())).snapshot().step == 4


def test_a_rank_arms_ahead_of_the_call_and_stops_when_committed() -> None:
    reporter, reader, _ = pair()
    assert not reporter.should_stop()
    reader.offer(1, 4, committed=False)
    assert not reporter.should_stop() and reader.words[s.ARMED] == 1
    reader.offer(1, 4, committed=True)
    assert not reporter.should_stop()
    assert reporter.should_stop() and reader.words[s.STOPPED] == 1 and reader.words[s.CALLS] == 4
    assert reporter.should_stop()


def test_a_rank_that_has_passed_the_call_does_not_arm() -> None:
    reporter, reader, _ = pair()
    for _ in range(5):
        reporter.should_stop()
    reader.offer(1, 5, committed=False)
    assert not reporter.should_stop()
    assert (reader.words[s.ARMED], reader.words[s.CALLS], reader.words[s.REFUSED]) == (0, 6, 0)


def test_a_rank_waits_at_the_call_for_the_word() -> None:
    reporter, reader, _ = pair()
    reader.offer(1, 1, committed=False)
    threading.Timer(0.1, reader.offer, (1, 1, True)).start()
    start = time.monotonic()
    assert reporter.should_stop()
    assert time.monotonic() - start >= 0.09


def test_a_rank_that_waits_in_vain_goes_on_and_refuses_that_proposal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_WAIT_SECONDS", 0.05)
    reporter, reader, _ = pair()
    reader.offer(1, 1, committed=False)
    assert not reporter.should_stop()
    assert (reader.words[s.REFUSED], reader.words[s.ARMED]) == (1, 0)
    reader.offer(1, 1, committed=True)
    assert not reporter.should_stop()
    reader.offer(2, 3, committed=True)
    assert reporter.should_stop()


def test_a_proposal_that_moves_while_a_rank_waits_is_followed() -> None:
    reporter, reader, _ = pair()
    reader.offer(1, 1, committed=False)
    threading.Timer(0.05, reader.offer, (2, 3, False)).start()
    assert not reporter.should_stop()
    assert reader.words[s.ARMED] == 2
    reader.offer(2, 3, committed=True)
    assert [reporter.should_stop(), reporter.should_stop()] == [False, True]


def test_a_withdrawn_proposal_disarms() -> None:
    reporter, reader, _ = pair()
    reader.offer(1, 5, committed=False)
    reporter.should_stop()
    reader.offer(0, 0, committed=False)
    assert not reporter.should_stop() and reader.words[s.ARMED] == 0


def test_a_report_costs_no_system_call() -> None:
    reporter, reader, _ = pair()
    called: set[str] = set()

    def note(_frame: Any, event: str, function: Any) -> None:
        if event == "c_call":
            called.add(str(getattr(function, "__module__", None) or type(getattr(function, "__self__", None)).__module__))

    reporter.report(step=1, loss=0.5, samples=64)
    sys.setprofile(note)
    try:
        reporter.report(step=2, loss=0.5, samples=64)
    finally:
        sys.setprofile(None)
    assert reader.snapshot().step == 2
    assert called and not called & {"posix", "io", "_io", "socket", "_socket", "select", "fcntl", "mmap"}


def test_a_checkpoint_path_in_bytes_is_a_path_and_spoils_no_later_report() -> None:
    reporter, reader, _ = pair()
    reporter.report(step=1, checkpoint=b"/data/step-1")  # type: ignore[arg-type]
    reporter.report(step=2, metrics={"accuracy": 0.5})
    assert (reader.snapshot().checkpoint, reader.snapshot().metrics) == ("/data/step-1", {"accuracy": "0.5"})
