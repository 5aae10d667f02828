"""The real API server accepts the CRD and refuses what local mode refuses, in the same words (the table is `wrong_manifests`)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client, config
from kubernetes.client.exceptions import ApiException

from kube import Kubectl, eventually
from lepton_operator.local.crd import FILE, crd, job_schema
from lepton_operator.local.validation import ManifestError, validate
from wrong_manifests import RIGHT, RIGHT_UPDATES, WRONG, Wrong, job

NAMESPACE = "lepton-test-crd"
CRD = Path(__file__).parents[2] / "crds" / FILE
KIND = {"group": "training.lepton.ai", "version": "v1alpha1", "namespace": NAMESPACE, "plural": "leptontrainingjobs"}


@pytest.fixture(scope="module")
def kubectl(kubeconfig: Path) -> Kubectl:
    return Kubectl(kubeconfig, NAMESPACE)


@pytest.fixture(scope="module")
def api(kubeconfig: Path, kubectl: Kubectl) -> Iterator[client.CustomObjectsApi]:
    kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    kubectl("wait", "--for=condition=Established", "--timeout=30s", "-f", str(CRD))
    kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    custom = client.CustomObjectsApi(config.new_client_from_config(str(kubeconfig)))
    eventually(lambda: is_served(custom))
    yield custom
    kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def is_served(custom: client.CustomObjectsApi) -> bool:
    """A new or changed schema is in force a moment after the CRD is Established."""
    try:
        create(custom, job())
        return True
    except ApiException:
        return False


def create(custom: client.CustomObjectsApi, manifest: dict[str, Any], dry_run: str | None = "All") -> dict[str, Any]:
    created: dict[str, Any] = custom.create_namespaced_custom_object(**KIND, body=manifest, field_validation="Strict", dry_run=dry_run)
    return created


def replace(custom: client.CustomObjectsApi, before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The answer to an update of a job that exists for as long as the question takes."""
    name = before["metadata"]["name"]
    stored = create(custom, before, dry_run=None)
    body = {**after, "metadata": {**after["metadata"], "resourceVersion": stored["metadata"]["resourceVersion"]}}
    try:
        replaced: dict[str, Any] = custom.replace_namespaced_custom_object(
            **KIND, name=name, body=body, field_validation="Strict", dry_run="All"
        )
        return replaced
    finally:
        custom.delete_namespaced_custom_object(**KIND, name=name)


def causes(error: ApiException) -> list[tuple[str, str]]:
    """(path, words) of each fault in the API server's answer."""
    status = json.loads(error.body)
    return [(cause["field"], cause["message"]) for cause in status.get("details", {}).get("causes", [])] or [("", status["message"])]


def local_causes(wrong: Wrong) -> list[tuple[str, str]]:
    try:
        validate(wrong.manifest, None if wrong.before is None else validate(job(wrong.before, wrong.name)))
    except ManifestError as error:
        parts = [(problem.path or "<nil>", str(problem)) for problem in error.problems]
        return [(path, line.removeprefix(f"{path}: ")) for path, line in parts] or [("", str(error))]
    return []


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.case)
def test_the_api_server_refuses_a_wrong_manifest_in_the_words_of_local_mode(api: client.CustomObjectsApi, wrong: Wrong) -> None:
    with pytest.raises(ApiException) as refused:
        if wrong.before is None:
            create(api, wrong.manifest)
        else:
            replace(api, job(wrong.before, wrong.name), wrong.manifest)
    told = causes(refused.value)
    assert any(path == wrong.path and wrong.message in message for path, message in told), told
    for path, message in local_causes(wrong):
        if "evaluating rule" in message:  # the words before it are those of the regular expression library
            assert any(path == where and message.partition(" evaluating rule")[2] in words for where, words in told), told
        elif path:
            assert (path, message) in told
        else:
            assert message in told[0][1]


@pytest.mark.parametrize("change", RIGHT.values(), ids=RIGHT.keys())
def test_the_api_server_stores_a_right_manifest_as_local_mode_does(api: client.CustomObjectsApi, change: str) -> None:
    assert create(api, job(change))["spec"] == validate(job(change))["spec"]


@pytest.mark.parametrize("update", RIGHT_UPDATES.values(), ids=RIGHT_UPDATES.keys())
def test_the_api_server_accepts_a_right_update(api: client.CustomObjectsApi, update: tuple[str, str]) -> None:
    before, after = update
    assert replace(api, job(before), job(after))["spec"] == validate(job(after))["spec"]


def test_kubectl_explain_describes_every_field(api: client.CustomObjectsApi, kubectl: Kubectl) -> None:
    document = json.loads(kubectl("get", "--raw", "/openapi/v3/apis/training.lepton.ai/v1alpha1"))
    served = document["components"]["schemas"]["ai.lepton.training.v1alpha1.LeptonTrainingJob"]
    assert [path for path in undescribed(served) if not path.startswith(".metadata")] == []
    words = " ".join(kubectl("explain", "ltj.spec.recovery.window").split())
    assert job_schema()["properties"]["spec"]["properties"]["recovery"]["properties"]["window"]["description"] in words


def undescribed(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    for name, part in schema.get("properties", {}).items():
        if not part.get("description"):
            yield f"{path}.{name}"
        yield from undescribed(part, f"{path}.{name}")
    yield from undescribed(schema["items"], f"{path}[]") if "items" in schema else ()


def test_a_scaled_job_is_refused_below_its_minimum_by_the_scale_subresource(api: client.CustomObjectsApi) -> None:
    create(api, job("{workers: {replicas: 3, minReplicas: 2}}"), dry_run=None)
    try:
        with pytest.raises(ApiException) as refused:
            api.patch_namespaced_custom_object_scale(**KIND, name="right", body={"spec": {"replicas": 1}})
        assert "replicas is below minReplicas" in refused.value.body
        scaled = api.patch_namespaced_custom_object_scale(**KIND, name="right", body={"spec": {"replicas": 5}})
        assert scaled["spec"]["replicas"] == 5
    finally:
        api.delete_namespaced_custom_object(**KIND, name="right")


def test_the_columns_show_what_the_status_holds(api: client.CustomObjectsApi, kubectl: Kubectl) -> None:
    create(api, job(), dry_run=None)
    status = yaml.safe_load(
        """
        {state: Running, reason: Training, workers: {summary: 7/8, active: 8}, goodput: {ratio: "0.97"},
        restarts: {total: 2, recent: [{time: "2026-01-02T03:04:05.678901Z", workers: [a]}]},
        progress: {step: 120, percent: 42%, loss: "NaN", throughput: 1.2k samples/s, eta: 12m}}
        """
    )
    try:
        api.patch_namespaced_custom_object_status(**KIND, name="right", body={"status": status})
        head, row = kubectl("get", "ltj", "right", "-o", "wide").splitlines()
        assert head.split() == ["NAME", *(column["name"].upper() for column in crd()["spec"]["versions"][0]["additionalPrinterColumns"])]
        assert row.split()[:8] == ["right", "Running", "7/8", "120", "42%", "NaN", "1.2k", "samples/s"]
        assert row.split()[8:10] == ["12m", "2"]
        assert row.split()[-2:] == ["Training", "0.97"]
    finally:
        api.delete_namespaced_custom_object(**KIND, name="right")
