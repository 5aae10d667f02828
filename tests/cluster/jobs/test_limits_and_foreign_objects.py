"""What a namespace forbids is said in its own words, and what lies there already and is not ours is never touched."""

import time
from collections.abc import Iterator

import pytest

from installation import Installation
from kube import Kubectl, Object, eventually
from trainings import CLAIM, Trainings

OK = "print('fine')"


@pytest.fixture
def quota(operator: Installation, places) -> Iterator[Trainings]:  # type: ignore[no-untyped-def]
    """Jobs in the namespace that a test may limit."""
    jobs = Trainings(operator, places.quota)
    yield jobs
    jobs.clear()
    for kind in ("resourcequota", "limitrange"):
        jobs.kubectl("delete", kind, "--all")


def test_a_quota_is_quoted_and_pods_come_when_it_is_raised(quota: Trainings) -> None:
    """B09: the job's own status says why it has no pods, in few events."""
    limit: Object = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "few"}, "spec": {"hard": {"pods": "1"}}}
    quota.kubectl.apply(limit)
    eventually(lambda: quota.kubectl.get("resourcequota", "few").get("status", {}).get("hard"))
    job = quota.plain("quota", OK, replicas=3)
    eventually(lambda: "exceeded quota: few" in job.condition("PodsReady").get("message", ""), 10)
    condition = job.condition("PodsReady")
    assert condition["status"] == "False" and "pods=1" in condition["message"]
    assert len(job.pods()) == 1
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 12 and len(job.pods()) == 1, 30)  # at least one more try was made
    told = [event for event in job.events() if "exceeded quota" in event["note"]]
    assert 1 <= len(told) <= 5
    limit["spec"]["hard"]["pods"] = "5"
    quota.kubectl.apply(limit)
    eventually(lambda: len(job.pods()) == 3, 30)
    assert job.wait("Finished")["state"] == "Complete"
    assert job.status()["restarts"]["total"] == 0


def test_a_limit_range_is_quoted(quota: Trainings) -> None:
    most = {"type": "Container", "max": {"memory": "64Mi"}}
    quota.kubectl.apply({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "small"}, "spec": {"limits": [most]}})
    job = quota.plain("range", OK, workers={"replicas": 1, "resources": {"limits": {"memory": "128Mi"}}})
    eventually(lambda: "maximum memory usage per Container is 64Mi" in job.condition("PodsReady").get("message", ""), 20)
    quota.kubectl("delete", "limitrange", "small")
    assert job.wait("Finished")["state"] == "Complete"


def test_a_foreign_service_of_the_jobs_name_is_never_adopted_nor_deleted(trainings: Trainings) -> None:
    kubectl = trainings.kubectl
    service = {"metadata": {"name": "theirs"}, "spec": {"ports": [{"port": 80}], "selector": {"app": "theirs"}}}
    kubectl.apply({"apiVersion": "v1", "kind": "Service", **service})
    try:
        uid = kubectl.get("service", "theirs")["metadata"]["uid"]
        trainings.plain("theirs", OK, exactly=True, intraJobCommunication=True)

        def told() -> bool:
            status = kubectl.get("ltj", "theirs").get("status", {})
            return any("Service named theirs exists and does not belong to this job" in c["message"] for c in status.get("conditions", ()))

        eventually(told, 30)
        kubectl("delete", "ltj", "theirs", "--timeout=30s")
        kept = kubectl.get("service", "theirs")
        assert kept["metadata"]["uid"] == uid and "ownerReferences" not in kept["metadata"]
        assert kept["spec"]["selector"] == {"app": "theirs"}
    finally:
        kubectl("delete", "service", "theirs")
        kubectl("delete", "ltj", "theirs", "--ignore-not-found", "--wait=false")


def test_a_foreign_pod_with_our_labels_is_never_adopted_nor_deleted(trainings: Trainings) -> None:
    kubectl = trainings.kubectl
    security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "trainer",
        "image": trainings.operator.images["operator"],
        "command": ["sleep", "600"],
        "securityContext": security,
    }
    labels = {"training.lepton.ai/job-name": "lookalike", "training.lepton.ai/worker-index": "0"}
    spec = {
        "terminationGracePeriodSeconds": 0,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lookalike-0-aaaaa", "labels": labels}, "spec": spec})
    try:
        uid = kubectl.get("pod", "lookalike-0-aaaaa")["metadata"]["uid"]
        trainings.plain("lookalike", OK, exactly=True)
        kubectl("wait", "ltj/lookalike", "--for=condition=Complete", "--timeout=60s", timeout=70)
        kubectl("delete", "ltj", "lookalike", "--timeout=30s")
        kept = kubectl.get("pod", "lookalike-0-aaaaa")
        assert kept["metadata"]["uid"] == uid and "deletionTimestamp" not in kept["metadata"]
        assert "ownerReferences" not in kept["metadata"]
    finally:
        kubectl("delete", "pod", "lookalike-0-aaaaa", "--wait=false")


def test_a_namespace_that_is_deleted_during_a_job_goes_and_costs_the_others_nothing(
    operator: Installation,
    places,  # type: ignore[no-untyped-def]
    trainings: Trainings,
) -> None:
    """B16: no finalizer of ours holds it, and the watch of one namespace takes no other along."""
    doomed = Trainings(operator, places.doomed)
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}}
    doomed.kubectl.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": CLAIM}, "spec": claim})
    job = doomed.plain("doomed", "import time; time.sleep(600)", replicas=2)
    eventually(lambda: job.status().get("state") == "Running", 60)
    assert "finalizers" not in job.body()["metadata"]
    everywhere = Kubectl(operator.kubeconfig)
    everywhere("delete", "namespace", places.doomed, "--timeout=60s", timeout=70)
    assert everywhere.run("get", "namespace", places.doomed).returncode != 0
    other = trainings.plain("beside", OK)
    assert other.wait("Finished")["state"] == "Complete"
    before = len(operator.log().splitlines())
    began = time.monotonic()
    eventually(lambda: time.monotonic() - began > 5, 10)
    assert len(operator.log().splitlines()) - before < 20, "the operator is in an error loop:\n" + operator.log_tail()
