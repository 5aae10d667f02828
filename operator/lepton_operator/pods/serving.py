"""The Deployment and the Service that serve a job's exported model, as plain dicts. Pure.

The pods are no workers: they lack the job's own pod label, so that neither the scale subresource nor the workers' Service counts them.
"""

import hashlib
import json
from typing import Any

from lepton_operator import constants as c
from lepton_operator.job import Job
from lepton_operator.pods.manifests import PodDefaults, container_security, labels, owner_reference, pod_security, process_env, user_env
from lepton_operator.pods.overlay import merge_objects

Json = dict[str, Any]

PORT_NAME = "http"
DRAIN_SECONDS = 5
"""After a pod was told to go, so long until every proxy knows: it serves on meanwhile."""
GRACE_SECONDS = 60
DEFAULT_RESOURCES: Json = {"requests": {"cpu": "100m", "memory": "512Mi"}}
FROM_TEMPLATE = ("imagePullSecrets", "serviceAccountName", "securityContext")
"""What of the workers' pod template holds for serving, too: who may read the image and the model."""


def serving_name(job: Job) -> str:
    return f"{job.name}-serve"


def build_serving(job: Job, defaults: PodDefaults, directory: str) -> tuple[Json, Json]:
    """(Deployment, Service) that serve the model in `directory`; each carries the digest of what it was made from."""
    assert job.serve is not None
    ours = {key: value for key, value in labels(job, c.COMPONENT_SERVING).items() if key != c.LABEL_JOB_NAME}
    selector = {key: ours[key] for key in (c.LABEL_JOB_UID, c.LABEL_APP_COMPONENT)}
    deployment = {
        "replicas": job.serve.replicas,
        "revisionHistoryLimit": 2,
        "selector": {"matchLabels": selector},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": {
            "metadata": {
                "labels": ours,
                "annotations": {
                    "prometheus.io/scrape": "true",
                    "prometheus.io/port": str(job.serve.port),
                    "prometheus.io/path": "/metrics",
                },
            },
            "spec": _pod(job, defaults, directory),
        },
    }
    port = {"name": PORT_NAME, "port": job.serve.port, "targetPort": PORT_NAME, "protocol": "TCP", "appProtocol": "http"}
    service = {"type": "ClusterIP", "selector": selector, "ports": [port]}
    return _object(job, "apps/v1", "Deployment", ours, deployment), _object(job, "v1", "Service", ours, service)


def digest_of(body: Json) -> str:
    """What an object of ours says that it was made from; empty where it does not."""
    return str(((body.get("metadata") or {}).get("annotations") or {}).get(c.ANNOTATION_TEMPLATE, ""))


def _object(job: Job, version: str, kind: str, ours: dict[str, str], spec: Json) -> Json:
    canonical = json.dumps(spec, sort_keys=True, separators=(",", ":"))
    metadata = {
        "name": serving_name(job),
        "namespace": job.namespace,
        "labels": ours,
        "annotations": {c.ANNOTATION_TEMPLATE: hashlib.sha256(canonical.encode()).hexdigest()[:16]},
        "ownerReferences": [owner_reference(job)],
    }
    return {"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}


def _pod(job: Job, defaults: PodDefaults, directory: str) -> Json:
    template = {key: value for key, value in (job.workers.template.get("spec") or {}).items() if key in FROM_TEMPLATE}
    volumes: list[Json] = [{"name": c.VOLUME_HOME, "emptyDir": {}}]
    if job.checkpoint:
        claim = {"claimName": job.checkpoint.claim_name, "readOnly": True}
        volumes.append({"name": c.VOLUME_CHECKPOINTS, "persistentVolumeClaim": claim})
    spec: Json = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "securityContext": pod_security(),
        "containers": [_container(job, defaults, directory)],
        "volumes": volumes,
    }
    if defaults.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in defaults.pull_secrets]
    return merge_objects(spec, template)


def _container(job: Job, defaults: PodDefaults, directory: str) -> Json:
    assert job.serve is not None
    mounts: list[Json] = [{"name": c.VOLUME_HOME, "mountPath": c.HOME_DIR}]
    if job.checkpoint:
        mounts.append({"name": c.VOLUME_CHECKPOINTS, "mountPath": c.CHECKPOINTS_DIR, "readOnly": True})
    command = ["python3", "-P", "-m", "lepton_trainer", "serve", directory, "--host", "0.0.0.0", "--port", str(job.serve.port)]
    container: Json = {
        "name": "server",
        "image": job.trainer.image or defaults.image,
        "command": command,
        "env": process_env(user_env(job)),
        "resources": job.serve.resources or DEFAULT_RESOURCES,
        "ports": [{"name": PORT_NAME, "containerPort": job.serve.port}],
        "volumeMounts": mounts,
        "securityContext": container_security(),
        "startupProbe": _probe("/healthz", period=2, failures=150),
        "livenessProbe": _probe("/healthz", period=10, failures=6),
        "readinessProbe": _probe("/readyz", period=2, failures=3),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(DRAIN_SECONDS)]}}},
    }
    if job.trainer.env_from:
        container["envFrom"] = list(job.trainer.env_from)
    if defaults.pull_policy and container["image"] == defaults.image:
        container["imagePullPolicy"] = defaults.pull_policy
    return container


def _probe(path: str, period: int, failures: int) -> Json:
    return {"httpGet": {"path": path, "port": PORT_NAME}, "periodSeconds": period, "failureThreshold": failures, "timeoutSeconds": 5}
