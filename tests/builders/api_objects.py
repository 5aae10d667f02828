"""Small builders of the API's JSON: a job, a pod of it, a node. Only what a test names differs from a healthy default."""

import json
from typing import Any

from lepton_operator import constants as c
from lepton_operator.job import Job, read_job

Json = dict[str, Any]


def job_body(name: str = "digits", namespace: str = "team", uid: str = "job-1", version: int = 100, **spec: Any) -> Json:
    """A LeptonTrainingJob; `trainer=`, `workers=`, ... replace or extend the parts of its spec."""
    trainer = {"command": ["python", "train.py"]} | spec.pop("trainer", {})
    meta = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": str(version), "generation": 1}
    return {
        "apiVersion": c.API_VERSION,
        "kind": c.KIND,
        "metadata": meta | {"creationTimestamp": "2026-11-25T03:00:00Z"},
        "spec": {"trainer": trainer, "workers": {"replicas": 2} | spec.pop("workers", {})} | spec,
    }


def job(**parts: Any) -> Job:
    return read_job(job_body(**parts))


def owner(uid: str = "job-1", name: str = "digits") -> Json:
    return {"apiVersion": c.API_VERSION, "kind": c.KIND, "name": name, "uid": uid, "controller": True}


def pod_body(
    name: str = "digits-0-aaaaa",
    uid: str = "pod-0",
    version: int = 200,
    index: int = 0,
    phase: str = "Running",
    state: Json | None = None,
    owners: list[Json] | None = None,
    namespace: str = "team",
    node: str = "node-a",
    **status: Any,
) -> Json:
    """A worker's pod; `state` is that of its trainer container, further keywords go into its status."""
    state = {"running": {"startedAt": "2026-11-25T03:00:05Z"}} if state is None else state
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid,
            "resourceVersion": str(version),
            "creationTimestamp": "2026-11-25T03:00:01Z",
            "labels": {c.LABEL_JOB_NAME: "digits", c.LABEL_WORKER_INDEX: str(index)},
            "annotations": {c.ANNOTATION_TEMPLATE: "0123456789abcdef"},
            "ownerReferences": [owner()] if owners is None else owners,
        },
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "containerStatuses": [{"name": "trainer", "state": state}]} | status,
    }


def node_body(name: str = "node-a", ready: bool = True, version: int = 10) -> Json:
    condition = {"type": "Ready", "status": "True" if ready else "Unknown"}
    return {"metadata": {"name": name, "uid": f"node-{name}", "resourceVersion": str(version)}, "status": {"conditions": [condition]}}


def copied(body: Json) -> Json:
    return json.loads(json.dumps(body))
