"""Sees to the Deployment and the Service of a job that serves: reads how they are, makes them, puts them right, takes them away.

They are asked for, not watched: few jobs serve, and what Kubernetes does for a Deployment it does without us. A foreign object of
their name is neither changed nor deleted.
"""

from typing import Any

from lepton_operator.job import Job
from lepton_operator.pods.api import AlreadyExists, Api
from lepton_operator.pods.manifests import PodDefaults
from lepton_operator.pods.projection import owner_of
from lepton_operator.pods.serving import build_serving, digest_of, serving_name
from lepton_operator.substrate import Gone, Rejected, Served, Unavailable

Json = dict[str, Any]
RESOURCES = {"Deployment": ("deployments", "/apis/apps/v1"), "Service": ("services", "/api/v1")}


async def read(api: Api, job: Job, defaults: PodDefaults, directory: str) -> Served:
    """How the serving of `job` is now; `directory` is what it should serve. Raises `Rejected`, `Unavailable`."""
    found = {kind: await _get(api, job, kind) for kind in RESOURCES}
    present = {kind: body for kind, body in found.items() if body is not None}
    foreign = next((kind for kind, body in present.items() if not _is_ours(job, body)), "")
    if foreign:
        return Served(exists=any(_is_ours(job, body) for body in present.values()), foreign=f"a {foreign} named {serving_name(job)}")
    if job.serve is None or not present:
        return Served(exists=bool(present))
    wanted = {body["kind"]: body for body in build_serving(job, defaults, directory)}
    current = all(kind in present and digest_of(present[kind]) == digest_of(body) for kind, body in wanted.items())
    deployment = present.get("Deployment") or {}
    spec, status = deployment.get("spec") or {}, deployment.get("status") or {}
    seen = int(status.get("observedGeneration", 0)) >= int((deployment.get("metadata") or {}).get("generation", 1))
    trouble, message = _trouble(status) if seen else ("", "")
    ready = min(int(status.get("readyReplicas", 0)), int(status.get("updatedReplicas", 0))) if seen else 0
    return Served(True, "", current and spec.get("replicas") == job.serve.replicas, ready, trouble, message)


async def ensure(api: Api, job: Job, defaults: PodDefaults, directory: str) -> None:
    """Makes both, or puts them right. Raises `Rejected`, `Unavailable`, `Conflict`."""
    for wanted in build_serving(job, defaults, directory):
        resource, path = _path(job, wanted["kind"])
        try:
            await api.request("create", resource, path, body=wanted)
            continue
        except Gone as error:
            raise Rejected("NamespaceMissing", str(error)) from None
        except AlreadyExists:
            body = await _get(api, job, wanted["kind"])
        if body is None:
            raise Unavailable(f"{wanted['kind']} {serving_name(job)} is just going away", retry_after=0.5)
        if not _is_ours(job, body):
            raise Rejected("NameConflict", f"a {wanted['kind']} named {serving_name(job)} exists and does not belong to this job")
        if digest_of(body) == digest_of(wanted) and body["spec"].get("replicas") == wanted["spec"].get("replicas"):
            continue
        metadata = body["metadata"] | {
            key: (body["metadata"].get(key) or {}) | wanted["metadata"][key] for key in ("labels", "annotations")
        }
        # A Service keeps what the cluster gave it; a Deployment is exactly what it is made from.
        spec = body["spec"] | wanted["spec"] if wanted["kind"] == "Service" else wanted["spec"]
        changed = {"apiVersion": wanted["apiVersion"], "kind": wanted["kind"], "metadata": metadata, "spec": spec}
        await api.request("update", resource, f"{path}/{serving_name(job)}", body=changed)


async def remove(api: Api, job: Job) -> None:
    """Deletes what is ours of both. Raises `Rejected`, `Unavailable`, `Conflict`."""
    for kind in RESOURCES:
        body = await _get(api, job, kind)
        if body is None or not _is_ours(job, body):
            continue
        resource, path = _path(job, kind)
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": body["metadata"]["uid"]}}
        try:
            await api.request("delete", resource, f"{path}/{serving_name(job)}", body=options)
        except Gone:
            continue


async def _get(api: Api, job: Job, kind: str) -> Json | None:
    resource, path = _path(job, kind)
    try:
        return await api.request("get", resource, f"{path}/{serving_name(job)}")
    except Gone:
        return None


def _path(job: Job, kind: str) -> tuple[str, str]:
    resource, root = RESOURCES[kind]
    return resource, f"{root}/namespaces/{job.namespace}/{resource}"


def _is_ours(job: Job, body: Json) -> bool:
    return owner_of(body)[1] == job.uid


def _trouble(status: Json) -> tuple[str, str]:
    """(reason, message) in the Deployment's own words; empty where it complains of nothing."""
    for condition in status.get("conditions") or ():
        failed = condition.get("type") == "ReplicaFailure" and condition.get("status") == "True"
        stuck = condition.get("type") == "Progressing" and condition.get("status") == "False"
        if failed or stuck:
            return str(condition.get("reason", "DeploymentFailed")), str(condition.get("message", ""))
    return "", ""
