"""Training in rounds on this machine: what the next round changes, faults in the middle, and an exit code that says whether it is good."""

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lepton_operator.status import EvaluationView
from local.lepton_run import SCRIPTS, LocalJob, local_job, manifest

SCRIPT = str(SCRIPTS / "rounds.py")
Make = Callable[..., LocalJob]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """`make(words, on_miss, ...)`: scripts/rounds.py, two workers, an accuracy of 0.9 required in three rounds at most."""
    with ExitStack() as stack:

        def new(words: list[str], on_miss: list[dict[str, Any]], **spec: Any) -> LocalJob:
            evaluation = {"metric": "accuracy", "target": 0.9, "maxRounds": 3, "onMiss": on_miss}
            command = ["python", SCRIPT, "--notes", str(tmp_path / "notes"), *words]
            spec = {"replicas": 2, "minimum": 2, "evaluation": evaluation, **spec}
            job = stack.enter_context(local_job(tmp_path / "home", manifest("rounds", command, **spec)))
            job.variables = {"LEPTON_WARM_START": "0"}
            return job

        yield new


@pytest.fixture
def notes(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """What rank 0 of each generation was given."""
    return lambda: [json.loads(line) for line in (tmp_path / "notes").read_text().splitlines()]


def rounds(job: LocalJob) -> EvaluationView:
    found = job.status.evaluation
    assert found is not None
    return found


def test_a_round_that_misses_is_followed_by_one_with_other_arguments_and_variables_that_meets(
    make: Make, notes: Callable[[], list[dict[str, Any]]]
) -> None:
    job = make(["--accuracy", "0.5"], [{"args": ["--accuracy", "0.8"], "env": [{"name": "BONUS", "value": "0.15"}]}])
    job.start()
    assert job.ended() == 0, job.output
    seen = rounds(job)
    assert (seen.met, seen.round, [r.value for r in seen.rounds]) == (True, 2, ["0.5", "0.95"])
    assert seen.rounds[1].changes == "args --accuracy 0.8, env BONUS"
    first, second = notes()
    assert (first["round"], second["round"]) == ("1", "2") and first["parent"] == second["parent"], "in the same worker"
    assert Path(first["directory"]).name == "round-1" and Path(second["directory"]) == Path(first["directory"]).with_name("round-2")
    assert "RoundMissed: accuracy is 0.5 in round 1" in job.output and "RequirementMet: accuracy is 0.95 in round 2" in job.output
    assert job.output.splitlines()[-1].startswith("lepton: Complete: round 2, accuracy 0.95, step 20")
    assert job.status.restarts.total == 0 and job.left_behind() == []
    header, row = job.lepton("get", job.name).stdout.splitlines()
    assert row[header.index("ROUND") :].split()[0] == "2" and row[header.index("METRIC") :].split()[0] == "0.95"


def test_a_requirement_that_is_not_met_fails_with_exit_code_1_and_names_the_best(make: Make) -> None:
    job = make(["--accuracy", "0.5"], [{"args": ["--accuracy", "0.7"]}, {"args": ["--accuracy", "0.6"]}])
    job.start()
    assert job.ended() == 1
    assert job.status.reason == "RequirementNotMet" and rounds(job).best is not None
    directory = job.run_dir / "claims" / "checkpoints" / "rounds" / "round-2"
    assert f"the best is 0.7 of round 2, kept in {directory}" in job.output and directory.is_dir()


def test_a_metric_that_the_script_never_reports_fails_with_its_name(make: Make) -> None:
    job = make([], [])
    job.start()
    assert job.ended() == 1
    assert job.status.reason == "MetricNotReported" and "accuracy was never reported" in job.output


def test_a_worker_that_is_killed_in_round_2_is_replaced_and_the_round_goes_on(
    make: Make, notes: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = make(["--accuracy", "0.5", "--wait", str(gate)], [{"args": ["--accuracy", "0.95"]}])
    job.start()
    job.until_status(lambda s: s.evaluation is not None and s.evaluation.round == 2 and s.progress.step == 10, "the middle of round 2", 60)
    job.lepton("kill", job.name, "--worker", "1")
    job.until_status(lambda s: s.restarts.total == 1, "the loss is counted")
    job.until(lambda: len(notes()) >= 3, "the next generation")
    gate.touch()
    assert job.ended() == 0, job.output
    seen = rounds(job)
    assert [r.value for r in seen.rounds] == ["0.5", "0.95"] and [n["round"] for n in notes()] == ["1", "2", "2"]
    assert notes()[1]["directory"] == notes()[2]["directory"]
    assert job.status.goodput.recomputed_steps <= 1 and job.status.restarts.total == 1


def test_a_second_lepton_run_takes_the_running_round_up_and_repeats_nothing(
    make: Make, notes: Callable[[], list[dict[str, Any]]], tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job = make(["--accuracy", "0.5", "--wait", str(gate)], [{"args": ["--accuracy", "0.95"]}])
    job.start()
    job.until_status(lambda s: s.evaluation is not None and s.evaluation.round == 2 and s.progress.step == 10, "the middle of round 2", 60)
    agents = job.agents()
    job.signal(signal.SIGKILL)
    job.ended()
    job.start()
    job.until(lambda: "2 living workers of an earlier run were taken up" in job.output, "the second run")
    gate.touch()
    assert job.ended() == 0, job.output
    assert len(notes()) == 2 and [r.value for r in rounds(job).rounds] == ["0.5", "0.95"]
    assert agents and job.status.rendezvous.generation == 2 and job.status.restarts.total == 0


def test_serving_is_left_to_a_command_that_is_named(tmp_path: Path) -> None:
    from lepton_operator.job import read_job
    from lepton_operator.local.outfit import at_home
    from lepton_operator.local.store import RunDirectory

    body = manifest("digits", [], export={"path": "/checkpoints/models"}, serve={})
    body["spec"]["trainer"] = {"builtin": {"imageClassification": {}}}
    run = RunDirectory("default", "digits")
    job = at_home(run, read_job(body))
    assert job.export_path == str(run.claims / "checkpoints" / "models")
    assert json.loads(job.trainer.builtin)["export"]["path"] == job.export_path
