"""Training in rounds on a cluster: the same pods, a checkpoint directory for each round, an operator deleted in the middle."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from installation import Installation
from kube import Object, eventually
from trainings import CLAIM, SCRIPTS, WINDOW, Training, Trainings

EXAMPLE = Path(__file__).parents[3] / "examples" / "retrain-until-good.yaml"
COLD = {"name": "LEPTON_WARM_START", "value": "0"}
ONE_THREAD = {"name": "OMP_NUM_THREADS", "value": "1"}
"""The workers share this machine's cores."""


def rounds(
    trainings: Trainings, name: str, accuracy: str, on_miss: list[Object], words: tuple[str, ...] = (), **evaluation: Any
) -> Training:
    """A job of rounds.py that must report an accuracy of 0.9; it notes what each of its generations was given."""
    command = ["python", "rounds.py", "--accuracy", accuracy, "--notes", f"/checkpoints/{name}/notes", *words]
    spec = {
        "trainer": {"command": command, "code": {"configMap": SCRIPTS}, "env": [COLD]},
        "workers": {"replicas": 2},
        "checkpoint": {"claimName": CLAIM, "path": name},
        "evaluation": {"metric": "accuracy", "target": 0.9, "onMiss": on_miss, **evaluation},
    }
    trainings.kubectl("exec", WINDOW, "--", "mkdir", "-p", f"/checkpoints/{name}")
    return trainings.start(name, spec, exactly=True)


def notes(job: Training) -> list[Object]:
    text = job.kubectl("exec", WINDOW, "--", "cat", f"/checkpoints/{job.name}/notes")
    return [json.loads(line) for line in text.splitlines()]


def names(job: Training) -> list[str]:
    return [pod["metadata"]["uid"] for pod in job.pods()]


def test_a_round_that_misses_is_followed_by_another_in_the_same_pods(trainings: Trainings) -> None:
    job = rounds(trainings, "rounds-script", "0.5", [{"args": ["--accuracy", "0.8"], "env": [{"name": "BONUS", "value": "0.15"}]}])
    eventually(lambda: job.status().get("evaluation", {}).get("round") == 1 and len(job.pods()) == 2, 60)
    pods = names(job)
    status = job.wait("Finished", 120)
    assert status["state"] == "Complete", status.get("message")
    seen = status["evaluation"]
    assert seen["met"] and [entry["value"] for entry in seen["rounds"]] == ["0.5", "0.95"]
    assert seen["best"] == {"round": 2, "value": "0.95", "path": f"/checkpoints/{job.name}/round-2"}
    assert names(job) == pods and status["restarts"]["total"] == 0 and status["rendezvous"]["generation"] == 2
    assert [(note["round"], note["directory"]) for note in notes(job)] == [
        (str(number), f"/checkpoints/{job.name}/round-{number}") for number in (1, 2)
    ]
    told = {event["reason"] for event in job.events()}
    assert {"RoundMissed", "NewRound", "RequirementMet"} <= told
    row = job.kubectl("get", "ltj", job.name)
    assert "ROUND" in row and "METRIC" in row and "0.95" in row


def test_an_operator_that_is_deleted_in_the_middle_of_round_2_repeats_nothing(operator: Installation, trainings: Trainings) -> None:
    gate = "/checkpoints/rounds-operator/gate"
    job = rounds(trainings, "rounds-operator", "0.5", [{"args": ["--accuracy", "0.95"]}], ("--wait", gate))
    eventually(lambda: job.status().get("evaluation", {}).get("round") == 2 and len(notes(job)) == 2, 120)
    agents, leader = job.agents(), operator.leader_pod()["metadata"]["name"]
    operator.kubectl("delete", "pod", leader, "--wait=false")
    eventually(lambda: operator.leader() and not operator.leader().startswith(leader), 60)
    job.kubectl("exec", WINDOW, "--", "touch", gate)
    status = job.wait("Finished", 120)
    assert status["state"] == "Complete", status.get("message")
    assert [entry["value"] for entry in status["evaluation"]["rounds"]] == ["0.5", "0.95"]
    assert [note["generation"] for note in notes(job)] == ["1", "2"] and status["restarts"]["total"] == 0
    assert [pod["metadata"]["uid"] for pod in job.pods()] == [uid for _, (uid, _) in sorted(agents.items())]
    operator.ready()


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_first_value_that_is_no_number_is_never_best_and_round_2_decides(trainings: Trainings, mode: str) -> None:
    """Case B32."""
    second = "0.95" if mode == "max" else "0.05"
    words = ("--metric", "score")  # no accuracy is ever to be kept low
    job = rounds(trainings, f"rounds-nan-{mode}", "nan", [{"args": ["--accuracy", second]}], words, metric="score", mode=mode)
    status = job.wait("Finished", 120)
    assert status["state"] == "Complete", status.get("message")
    seen = status["evaluation"]
    assert [entry["value"] for entry in seen["rounds"]] == ["NaN", second] and seen["best"]["round"] == 2
    json.loads(json.dumps(status, allow_nan=False))


def test_a_requirement_that_is_not_met_fails_the_job_and_names_what_is_kept(trainings: Trainings) -> None:
    job = rounds(trainings, "rounds-missed", "0.5", [{"args": ["--accuracy", "0.7"]}, {"args": ["--accuracy", "0.6"]}])
    status = job.wait("Finished", 120)
    assert (status["state"], status["reason"]) == ("Failed", "RequirementNotMet")
    assert "the best is 0.7 of round 2, kept in /checkpoints/rounds-missed/round-2" in status["message"]
    assert job.kubectl("exec", WINDOW, "--", "ls", "/checkpoints/rounds-missed/round-2").split() == ["step-0", "step-1"]


def test_the_built_in_trainer_is_trained_until_it_is_good(trainings: Trainings) -> None:
    *_, body = yaml.safe_load_all(EXAMPLE.read_text())
    spec = body["spec"]
    del spec["serve"]
    spec["trainer"]["builtin"]["imageClassification"]["training"]["steps"] = 8
    spec["trainer"]["env"] = [ONE_THREAD]
    spec["evaluation"] |= {"target": 0.85, "onMiss": [{"epochs": 25, "warmStart": True}]}
    spec["checkpoint"] = {"claimName": CLAIM, "path": "rounds-builtin"}
    job = trainings.start("rounds-builtin", spec, exactly=True)
    status = job.wait("Finished", 300)
    assert status["state"] == "Complete", status.get("message")
    first, second = status["evaluation"]["rounds"]
    assert float(first["value"]) < 0.85 <= float(second["value"])
    assert (first["steps"], second["steps"], second["changes"]) == (8, 200, "epochs x25, warm start from round 1")
