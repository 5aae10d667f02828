"""The Deployment and the Service of a served model: what they look like, and that foreign ones are left alone."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from builders.api_objects import job, owner
from builders.fake_api import FakeApi, status
from lepton_operator.job import Job
from lepton_operator.pods import deployments
from lepton_operator.pods.api import Api
from lepton_operator.pods.manifests import PodDefaults
from lepton_operator.pods.serving import build_serving
from lepton_operator.substrate import Conflict, Rejected, Served

DEFAULTS = PodDefaults(image="trainer:1", coordinator="tls://c:7443")
MODEL = "/checkpoints/digits/round-1/model"
Json = dict[str, Any]


def serving(**spec: Any) -> Job:
    trainer = {"builtin": {"imageClassification": {}}, **spec.pop("trainer", {})}
    given = {"serve": {"replicas": 2, "port": 9000}, "checkpoint": {"claimName": "shared"}, **spec}
    made = job(trainer=trainer, **given)
    return made


def pod(of: Job) -> Json:
    spec: Json = build_serving(of, DEFAULTS, MODEL)[0]["spec"]["template"]["spec"]
    return spec


def stored(of: Job, uid: str = "job-1", ready: int = 0, **changes: Any) -> dict[str, Json]:
    """Both objects as the API server would hold them."""
    found = {}
    for body in copy.deepcopy(build_serving(of, DEFAULTS, MODEL)):
        body["metadata"] |= {"uid": f"{body['kind']}-1", "resourceVersion": "5", "generation": 1, "ownerReferences": [owner(uid=uid)]}
        found[body["kind"]] = body
    found["Deployment"]["status"] = {"observedGeneration": 1, "readyReplicas": ready, "updatedReplicas": ready, **changes}
    found["Service"]["spec"]["clusterIP"] = "10.0.0.7"
    return found


def answering(fake: FakeApi, objects: dict[str, Json]) -> None:
    """Get answers with these objects, or 404; create with 409 where there is one; update and delete succeed."""

    def of(kind: str) -> Callable[[Json], Any]:
        def answer(seen: Json) -> Any:
            method, body = seen["request"].method, objects.get(kind)
            if method == "GET":
                return (200, body) if body is not None else status(404, "NotFound", "not found")
            if method == "POST":
                return status(409, "AlreadyExists", "exists") if body is not None else (201, seen["body"])
            return 200, seen["body"]

        return answer

    fake.routes = {"/deployments": of("Deployment"), "/services": of("Service")}


def test_the_pods_serve_the_model_from_the_claim_under_restricted_pod_security() -> None:
    deployment, service = build_serving(serving(), DEFAULTS, MODEL)
    (container,) = pod(serving())["containers"]
    command = ["python3", "-P", "-m", "lepton_trainer", "serve", MODEL, "--host", "0.0.0.0", "--port", "9000"]
    assert (container["image"], container["command"]) == ("trainer:1", command)
    assert {"name": "lepton-checkpoints", "mountPath": "/checkpoints", "readOnly": True} in container["volumeMounts"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    security = pod(serving())["securityContext"]
    assert security["runAsNonRoot"] and security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod(serving())["automountServiceAccountToken"] is False
    assert deployment["spec"]["replicas"] == 2 and service["spec"]["ports"][0]["port"] == 9000
    assert deployment["metadata"]["name"] == service["metadata"]["name"] == "digits-serve"
    assert deployment["metadata"]["ownerReferences"][0]["uid"] == "job-1" and "blockOwnerDeletion" not in str(deployment)


def test_no_request_fails_while_pods_come_and_go() -> None:
    deployment, _ = build_serving(serving(), DEFAULTS, MODEL)
    assert deployment["spec"]["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    (container,) = pod(serving())["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/healthz", "liveness": "/healthz", "readiness": "/readyz"}
    drain = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert 0 < drain < pod(serving())["terminationGracePeriodSeconds"] - 30


def test_serving_pods_are_no_workers_and_prometheus_finds_them() -> None:
    deployment, service = build_serving(serving(), DEFAULTS, MODEL)
    template = deployment["spec"]["template"]["metadata"]
    assert "training.lepton.ai/job-name" not in template["labels"]
    assert (
        service["spec"]["selector"]
        == deployment["spec"]["selector"]["matchLabels"]
        == {
            "training.lepton.ai/job-uid": "job-1",
            "app.kubernetes.io/component": "serving",
        }
    )
    assert template["annotations"]["prometheus.io/port"] == "9000"


def test_the_users_credentials_and_image_rights_hold_for_serving_too() -> None:
    given = serving(
        trainer={"image": "team/trainer:2", "env": [{"name": "AWS_REGION", "value": "x"}], "envFrom": [{"secretRef": {"name": "s3"}}]},
        workers={
            "template": {"spec": {"serviceAccountName": "reader", "nodeSelector": {"gpu": "yes"}, "imagePullSecrets": [{"name": "p"}]}}
        },
    )
    (container,) = pod(given)["containers"]
    assert container["image"] == "team/trainer:2" and {"name": "AWS_REGION", "value": "x"} in container["env"]
    assert container["envFrom"] == [{"secretRef": {"name": "s3"}}]
    assert pod(given)["serviceAccountName"] == "reader" and pod(given)["imagePullSecrets"] == [{"name": "p"}]
    assert "nodeSelector" not in pod(given), "a server needs no GPU"


def test_resources_are_the_users_or_small_ones() -> None:
    assert pod(serving())["containers"][0]["resources"] == {"requests": {"cpu": "100m", "memory": "512Mi"}}
    given = serving(serve={"resources": {"limits": {"cpu": "2"}}})
    assert pod(given)["containers"][0]["resources"] == {"limits": {"cpu": "2"}}


async def test_what_is_missing_is_made(fake: FakeApi, api: Api) -> None:
    answering(fake, {})
    assert await deployments.read(api, serving(), DEFAULTS, MODEL) == Served()
    await deployments.ensure(api, serving(), DEFAULTS, MODEL)
    made = [(path.rpartition("/")[2].partition("?")[0], body["kind"]) for method, path, body in fake.requests if method == "POST"]
    assert made == [("deployments", "Deployment"), ("services", "Service")]


async def test_what_is_as_asked_is_left_as_it_is(fake: FakeApi, api: Api) -> None:
    answering(fake, stored(serving(), ready=2))
    assert await deployments.read(api, serving(), DEFAULTS, MODEL) == Served(True, current=True, ready=2)
    await deployments.ensure(api, serving(), DEFAULTS, MODEL)
    assert {method for method, _, _ in fake.requests} == {"GET", "POST"}


async def test_other_replicas_and_another_port_are_put_right_and_the_service_keeps_its_address(fake: FakeApi, api: Api) -> None:
    answering(fake, stored(serving(), ready=2))
    wanted = serving(serve={"replicas": 3, "port": 9001})
    assert not (await deployments.read(api, wanted, DEFAULTS, MODEL)).current
    await deployments.ensure(api, wanted, DEFAULTS, MODEL)
    deployment, service = [body for method, _, body in fake.requests if method == "PUT"]
    assert deployment["spec"]["replicas"] == 3 and deployment["metadata"]["resourceVersion"] == "5"
    assert service["spec"]["ports"][0]["port"] == 9001 and service["spec"]["clusterIP"] == "10.0.0.7"


async def test_a_deployment_that_somebody_scaled_is_not_as_asked(fake: FakeApi, api: Api) -> None:
    objects = stored(serving(), ready=1)
    objects["Deployment"]["spec"]["replicas"] = 1
    answering(fake, objects)
    assert not (await deployments.read(api, serving(), DEFAULTS, MODEL)).current


@pytest.mark.parametrize("kind", ["Deployment", "Service"])
async def test_a_foreign_object_of_the_name_is_neither_changed_nor_deleted(fake: FakeApi, api: Api, kind: str) -> None:
    objects = stored(serving())
    objects[kind]["metadata"]["ownerReferences"] = [owner(uid="somebody")]
    answering(fake, objects)
    assert (await deployments.read(api, serving(), DEFAULTS, MODEL)).foreign == f"a {kind} named digits-serve"
    with pytest.raises(Rejected) as refused:
        await deployments.ensure(api, serving(), DEFAULTS, MODEL)
    assert refused.value.reason == "NameConflict"
    await deployments.remove(api, replace(serving(), serve=None))
    deleted = [path for method, path, _ in fake.requests if method == "DELETE"]
    assert len(deleted) == 1 and kind.lower() not in deleted[0]
    assert not [path for method, path, _ in fake.requests if method == "PUT" and kind.lower() in path]


async def test_removing_is_conditional_on_the_object_that_was_seen(fake: FakeApi, api: Api) -> None:
    answering(fake, stored(serving()))
    await deployments.remove(api, replace(serving(), serve=None))
    deleted = [body["preconditions"] for method, _, body in fake.requests if method == "DELETE"]
    assert deleted == [{"uid": "Deployment-1"}, {"uid": "Service-1"}]


async def test_an_update_that_lost_the_race_is_tried_again(fake: FakeApi, api: Api) -> None:
    fake.answers = [status(409, "AlreadyExists", "exists"), (200, stored(serving())["Deployment"]), status(409, "Conflict", "modified")]
    with pytest.raises(Conflict):
        await deployments.ensure(api, serving(serve={"replicas": 5}), DEFAULTS, MODEL)


@pytest.mark.parametrize(
    "condition",
    [
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "pods is forbidden: exceeded quota"},
        {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "has timed out progressing"},
    ],
)
async def test_the_deployments_own_words_are_heard(fake: FakeApi, api: Api, condition: dict[str, str]) -> None:
    answering(fake, stored(serving(), conditions=[{"type": "Available", "status": "False", "reason": "x", "message": "y"}, condition]))
    seen = await deployments.read(api, serving(), DEFAULTS, MODEL)
    assert (seen.trouble, seen.trouble_message) == (condition["reason"], condition["message"])


async def test_what_the_controller_has_not_seen_yet_counts_for_nothing(fake: FakeApi, api: Api) -> None:
    objects = stored(serving(), ready=2)
    objects["Deployment"]["metadata"]["generation"] = 2
    answering(fake, objects)
    assert (await deployments.read(api, serving(), DEFAULTS, MODEL)).ready == 0
