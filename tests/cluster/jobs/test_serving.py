"""A trained model behind a Service: right answers, replicas that change without a failed request, and requests that make no sense."""

import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kube import Kubectl, Object, eventually
from trainings import CLAIM, WINDOW, Training, Trainings

EXAMPLE = Path(__file__).parents[3] / "examples" / "retrain-until-good.yaml"
ONE_THREAD = {"name": "OMP_NUM_THREADS", "value": "1"}
IMAGE = [[0.0] * 8 for _ in range(8)]
ASK = """
import json, sys, time, urllib.error, urllib.request
base, seconds, bodies = sys.argv[1], float(sys.argv[2]), json.loads(sys.stdin.read())
until, answers = time.monotonic() + seconds, []
while True:
    for body in bodies:
        data = body["text"].encode() * body.get("times", 1)
        headers = {"Content-Type": body.get("type", "application/json"), "Connection": "close"}
        try:
            with urllib.request.urlopen(urllib.request.Request(base + "/predict", data, headers), timeout=30) as answer:
                answers.append([answer.status, answer.read().decode()])
        except urllib.error.HTTPError as error:
            answers.append([error.code, error.read().decode()])
        except OSError as error:
            answers.append([0, str(error)])
    if time.monotonic() >= until:
        break
print(json.dumps(answers))
"""
"""Asks the bodies one after the other, again and again for so many seconds."""


def good(count: int = 1) -> Object:
    return {"text": json.dumps({"instances": [IMAGE] * count})}


def ask(job: Training, *bodies: Object, seconds: float = 0.0) -> list[tuple[int, str]]:
    """(HTTP status, answer) of each, from a pod of the cluster; status 0: no answer."""
    address = job.kubectl.get("service", f"{job.name}-serve")["spec"]["clusterIP"]
    port = job.body()["spec"]["serve"]["port"]
    command = ("exec", "-i", WINDOW, "--", "python3", "-c", ASK, f"http://{address}:{port}", str(seconds))
    said = job.kubectl(*command, stdin=json.dumps(bodies), timeout=seconds + 120)
    return [(status, text) for status, text in json.loads(said)]


def pods(job: Training) -> list[Object]:
    uid = job.body()["metadata"]["uid"]
    items: list[Object] = job.kubectl.get("pods", "-l", f"training.lepton.ai/job-uid={uid},app.kubernetes.io/component=serving")["items"]
    return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]


def restarts(job: Training) -> int:
    return sum(status["restartCount"] for pod in pods(job) for status in pod["status"].get("containerStatuses", ()))


def spec(name: str, **changes: Any) -> Object:
    *_, body = yaml.safe_load_all(EXAMPLE.read_text())
    wanted: Object = body["spec"]
    wanted["trainer"]["builtin"]["imageClassification"]["training"]["steps"] = 60
    wanted["trainer"]["env"] = [ONE_THREAD]
    wanted["checkpoint"] = {"claimName": CLAIM, "path": name}
    wanted["serve"] = {"replicas": 1, "port": 9000}
    del wanted["evaluation"]
    return {**wanted, **changes}


@pytest.fixture(scope="module")
def kept() -> Iterator[list[Training]]:
    """The job that all but the last tests ask; it is trained once."""
    jobs: list[Training] = []
    yield jobs
    for job in jobs:
        job.kubectl.run("delete", "ltj", job.name, "--wait=false", "--ignore-not-found")


@pytest.fixture
def served(kept: list[Training], trainings: Trainings) -> Training:
    if not kept:
        name = f"served-{secrets.token_hex(2)}"
        kept.append(trainings.start(name, spec(name), exactly=True))
        trainings.made.remove(kept[0])
        status = kept[0].wait("Finished", 300)
        assert status["state"] == "Complete", status.get("message")
        kept[0].wait("ServingReady", 120)
    return kept[0]


def test_a_complete_job_answers_through_its_service(served: Training) -> None:
    ((status, text),) = ask(served, good(3))
    assert status == 200, text
    assert len(json.loads(text)["predictions"]) == 3
    deployment = served.kubectl.get("deploy", f"{served.name}-serve")
    assert deployment["metadata"]["ownerReferences"][0]["uid"] == served.body()["metadata"]["uid"]
    assert "1 of 1 pods serve" in served.condition("ServingReady")["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"text": '{"x'},
        {"text": json.dumps({"instances": [[1.0, 2.0]]})},
        {"text": "[]"},
        {"text": '{"instances": [[' + ", ".join(["[NaN" + ", 0" * 7 + "]"] * 8) + "]]}"},
        {"text": json.dumps({"instances": [[["seven"] * 8] * 8]})},
        {"text": "x" * 1024, "times": 50 * 1024},
        {"text": good()["text"], "type": "text/plain"},
    ],
    ids=["cut off", "wrong shape", "no object", "NaN", "words for numbers", "50 MiB", "wrong content type"],
)
def test_a_request_that_makes_no_sense_is_told_why_and_harms_nobody(served: Training, body: Object) -> None:
    """Case B36."""
    (status, text), (after, _) = ask(served, body, good())
    assert 400 <= status < 500 or (status == 0 and body.get("times")), (status, text)  # of what is far too large the rest is not read
    assert status == 0 or len(text) > 10, "it says why"
    assert after == 200 and restarts(served) == 0


def test_replicas_change_on_a_finished_job_without_a_failed_request(served: Training) -> None:
    name = served.name
    for replicas in (3, 1):
        served.kubectl("patch", "ltj", name, "--type=merge", "-p", json.dumps({"spec": {"serve": {"replicas": replicas}}}))
        answers = ask(served, good(), seconds=20.0)
        assert {status for status, _ in answers} == {200}, [answer for answer in answers if answer[0] != 200][:3]
        eventually(lambda replicas=replicas: len(pods(served)) == replicas, 120)
    assert served.status()["state"] == "Complete" and restarts(served) == 0


def test_serve_that_is_taken_back_takes_deployment_and_service_away(trainings: Trainings) -> None:
    name = f"unserved-{secrets.token_hex(2)}"
    job = trainings.start(name, spec(name), exactly=True)
    job.wait("Finished", 300)
    job.wait("ServingReady", 120)
    job.kubectl("patch", "ltj", name, "--type=json", "-p", '[{"op": "remove", "path": "/spec/serve"}]')
    eventually(lambda: gone(job.kubectl, f"deploy/{name}-serve") and gone(job.kubectl, f"service/{name}-serve"), 60)
    eventually(lambda: job.condition("ServingReady").get("reason") == "Removed", 30)


def test_a_foreign_service_of_the_name_is_left_alone_and_said(trainings: Trainings) -> None:
    name = f"taken-{secrets.token_hex(2)}"
    trainings.kubectl("create", "service", "clusterip", f"{name}-serve", "--tcp=80:80")
    try:
        job = trainings.start(name, spec(name), exactly=True)
        job.wait("Finished", 300)
        eventually(lambda: job.condition("ServingReady").get("reason") == "NameConflict", 60)
        job.kubectl("delete", "ltj", name)
        assert not gone(trainings.kubectl, f"service/{name}-serve")
    finally:
        trainings.kubectl.run("delete", "service", f"{name}-serve")


def gone(kubectl: Kubectl, what: str) -> bool:
    return "NotFound" in kubectl.run("get", what).stderr
