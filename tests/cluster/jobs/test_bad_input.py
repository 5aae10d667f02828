"""What users get wrong, what their cluster refuses: each ends in a sentence that names the thing; where it can be mended the job goes on.

All jobs are made at once, because most of them only wait to be told.
"""

import json
from collections.abc import Iterator

import pytest

from installation import Installation
from kube import Object, eventually
from trainings import SCRIPTS, WINDOW, Training, Trainings

OK = "print('fine')"
COLD = [{"name": "LEPTON_WARM_START", "value": "0"}]
WRITE = "import pathlib\npathlib.Path('/checkpoints/{}/model').write_bytes(b'0' * (4 << 20))"
ONCE = {"maxRestarts": 1}


def tiny_volume(path: str, volume: Object) -> Object:
    """A template that lays another volume over a folder of the checkpoint volume."""
    container = {"name": "trainer", "volumeMounts": [{"name": "laid-over", "mountPath": path}]}
    return {"spec": {"containers": [container], "volumes": [{"name": "laid-over", **volume}]}}


@pytest.fixture(scope="module")
def wrong(operator: Installation, places) -> Iterator[dict[str, Training]]:  # type: ignore[no-untyped-def]
    """All wrong jobs, by what is wrong with them."""
    jobs = Trainings(operator, places.jobs)
    claim = {"checkpoint": {"claimName": "shared", "path": "laid"}}
    made = {
        "image": jobs.plain("image", OK, trainer={"image": "127.0.0.1:1/no/such:1"}),
        "command": jobs.plain("command", OK, trainer={"command": ["no-such-program", "--fast"]}, recovery=ONCE),
        "syntax": jobs.start(
            "syntax",
            {
                "trainer": {"command": ["python", "broken.py"], "code": {"configMap": SCRIPTS}},
                "workers": {"replicas": 1},
                "recovery": ONCE,
            },
        ),
        "room": jobs.plain(
            "room",
            OK,
            workers={"replicas": 1, "resources": {"limits": {"example.com/widget": "1"}, "requests": {"example.com/widget": "1"}}},
        ),
        "secret": jobs.plain("secret", OK, trainer={"envFrom": [{"secretRef": {"name": "not-there-secret"}}]}),
        "configmap": jobs.plain("configmap", OK, trainer={"code": {"configMap": "not-there-code"}}),
        "volume": jobs.plain("volume", OK, checkpoint={"claimName": "not-there-claim"}),
        "template": jobs.plain("template", OK, workers={"replicas": 1, "template": {"spec": {"nodeSelectors": {}}}}),
        "shape": jobs.plain("shape", OK, workers={"replicas": 1, "template": {"spec": {"volumes": {"name": "data"}}}}),
        "read-only": jobs.plain(
            "read-only",
            WRITE.format("laid"),
            recovery=ONCE,
            workers={"replicas": 1, "template": tiny_volume("/checkpoints/laid", {"configMap": {"name": SCRIPTS}})},
            **claim,
        ),
        "full": jobs.plain(
            "full",
            WRITE.format("laid"),
            recovery=ONCE,
            workers={
                "replicas": 1,
                "template": tiny_volume("/checkpoints/laid", {"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}),
            },
            **claim,
        ),
    }
    yield made
    jobs.clear()


def waiting_for(job: Training, reason: str, *words: str, timeout: float = 60) -> Object:
    """Waits until PodsReady=False says why, in these words; the job is neither failed nor charged for it."""

    def told() -> Object | None:
        condition = job.condition("PodsReady")
        return condition if condition.get("reason") == reason and all(word in condition["message"] for word in words) else None

    condition: Object = eventually(told, timeout)
    assert condition["status"] == "False"
    status = job.status()
    assert status["state"] == "Pending" and status["restarts"]["total"] == 0 and "lastFailure" not in status
    assert any(event["reason"] == reason for event in job.events()), "it is an event, too"
    return condition


def failed(job: Training, reason: str, *words: str) -> Object:
    """Waits for the job's end; it failed with a cause that has these words."""
    status = job.wait("Finished")
    assert status["state"] == "Failed"
    assert status["reason"] == "RestartBudgetExceeded" and status["restarts"]["total"] == 2
    failure: Object = status["lastFailure"]
    assert failure["reason"] == reason, failure
    assert all(word in failure["message"] for word in words), failure["message"]
    assert all(word in status["message"] for word in words), "the job's own message names the cause"
    assert any(event["type"] == "Warning" and words[0] in event["note"] for event in job.events())
    return failure


def test_an_image_that_cannot_be_pulled(wrong: dict[str, Training]) -> None:
    job = wrong["image"]
    eventually(lambda: job.condition("PodsReady").get("reason") in ("ErrImagePull", "ImagePullBackOff"), 60)
    waiting_for(job, job.condition("PodsReady")["reason"], "127.0.0.1:1/no/such:1", "container trainer")


def test_a_command_that_does_not_exist(wrong: dict[str, Training]) -> None:
    failed(wrong["command"], "CommandNotFound", "no-such-program", "spec.trainer.command")


def test_a_syntax_error_is_named_with_file_and_line(wrong: dict[str, Training]) -> None:
    failure = failed(wrong["syntax"], "ProcessFailed", "SyntaxError", "broken.py:3")
    assert "if True print" in failure["logTail"]


def test_a_pod_that_cannot_be_scheduled_starts_when_there_is_room(wrong: dict[str, Training]) -> None:
    job = wrong["room"]
    waiting_for(job, "Unschedulable", "Insufficient example.com/widget")
    node = job.kubectl.get("pod", WINDOW)["spec"]["nodeName"]
    room = [{"op": "add", "path": f"/status/{kind}/example.com~1widget", "value": "1"} for kind in ("capacity", "allocatable")]
    job.kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(room))
    try:
        assert job.wait("Finished")["state"] == "Complete"
    finally:
        gone = [{"op": "remove", "path": operation["path"]} for operation in room]
        job.kubectl("patch", "node", node, "--subresource=status", "--type=json", "-p", json.dumps(gone))


def test_a_missing_secret_is_named_and_waited_for(wrong: dict[str, Training]) -> None:
    job = wrong["secret"]
    waiting_for(job, "CreateContainerConfigError", 'secret "not-there-secret" not found')
    job.kubectl("create", "secret", "generic", "not-there-secret", "--from-literal=PASSWORD=x")
    assert job.wait("Finished")["state"] == "Complete"


def test_a_missing_config_map_is_named_and_waited_for(wrong: dict[str, Training]) -> None:
    job = wrong["configmap"]
    waiting_for(job, "FailedMount", 'configmap "not-there-code" not found')
    job.kubectl("create", "configmap", "not-there-code", "--from-literal=train.py=pass")
    assert job.wait("Finished", 150)["state"] == "Complete"  # the kubelet tries again after up to two minutes


def test_a_missing_claim_is_named_and_waited_for(wrong: dict[str, Training]) -> None:
    job = wrong["volume"]
    waiting_for(job, "Unschedulable", 'persistentvolumeclaim "not-there-claim" not found')
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}}
    metadata = {"name": "not-there-claim"}
    job.kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim})
    assert job.wait("Finished")["state"] == "Complete"


def test_a_mistyped_field_of_the_pod_template_is_named_and_the_job_starts_when_it_is_mended(wrong: dict[str, Training]) -> None:
    job = wrong["template"]
    waiting_for(job, "Invalid", 'unknown field "spec.nodeSelectors"')
    job.kubectl("patch", "ltj", job.name, "--type=json", "-p", '[{"op": "remove", "path": "/spec/workers/template"}]')
    assert job.wait("Finished")["state"] == "Complete"


def test_so_is_a_part_of_it_that_is_no_list(wrong: dict[str, Training]) -> None:
    waiting_for(wrong["shape"], "Invalid", "spec.workers.template.spec.volumes must be a list of objects")


def test_a_checkpoint_volume_that_is_read_only(wrong: dict[str, Training]) -> None:
    failed(wrong["read-only"], "ProcessFailed", "Read-only file system")


def test_a_checkpoint_volume_that_is_full(wrong: dict[str, Training]) -> None:
    failed(wrong["full"], "ProcessFailed", "No space left on device")
