"""What the operator writes into a cluster, as plain dicts: a worker's Pod, the headless Service, an Event. Pure.

The user's pod template is laid over ours (`overlay`); what makes the pod a worker (identity, command, restart policy, owner) stays ours.
"""

import hashlib
import json
import posixpath
import re
from dataclasses import dataclass
from typing import Any

from lepton_operator import constants as c
from lepton_operator.job import Job, accelerators, accelerators_asked, format_micro_time
from lepton_operator.pods.overlay import check_template, merge_env, overlay_pod
from lepton_operator.substrate import Event
from lepton_trainer.protocol import names

Json = dict[str, Any]

USER_MAY_SET = frozenset({names.WARM_START, names.PRELOAD, names.CACHE})
"""Variables of ours that a job's env may set; the other LEPTON_ names, and torchrun's, it may not."""

_PYTHON = re.compile(r"python(\d(\.\d+)?)?$")


@dataclass(frozen=True, slots=True)
class PodDefaults:
    """What the installation, not the job, decides about a worker's pod."""

    image: str  # the trainer image: for jobs that name none, and the source of the agent for those that do
    coordinator: str  # tls://host:port
    ca: str = ""  # PEM bundle that the coordinator's certificate is checked against
    pull_policy: str = ""
    pull_secrets: tuple[str, ...] = ()


def owned_env(job: Job) -> tuple[str, ...]:
    """Names in the job's env that are ours to set (RANK, LEPTON_JOB_UID, ...): they are left out of the pod, and the user is to be told.

    The CRD refuses them in spec.trainer.env; it does not look into the pod template.
    """
    wanted = [str(entry.get("name", "")) for entry in (*(_template_trainer(job).get("env") or ()), *job.trainer.env)]
    return tuple(dict.fromkeys(name for name in wanted if _is_owned(name)))


def _is_owned(name: str) -> bool:
    return name in names.TORCHRUN or (name.startswith(("LEPTON_", "TORCHELASTIC_")) and name not in USER_MAY_SET)


def build_pod(job: Job, defaults: PodDefaults, name: str, index: int) -> Json:
    """The Pod of worker `index`, named `name` (chosen once by the caller and kept over retries). Raises `TemplateError`."""
    check_template(job.workers.template)
    pod = overlay_pod(_base_pod(job, defaults, index), job.workers.template)
    digest = template_digest(job, defaults)
    metadata = pod["metadata"]
    metadata["name"] = name
    metadata["namespace"] = job.namespace
    metadata["ownerReferences"] = [owner_reference(job)]
    metadata["annotations"] |= {c.ANNOTATION_TEMPLATE: digest, c.ANNOTATION_CA: defaults.ca, c.ANNOTATION_COORDINATOR: defaults.coordinator}
    return pod


def template_digest(job: Job, defaults: PodDefaults) -> str:
    """16 hex digits that change when the pods of this job would be built differently; the same for every index and number of replicas."""
    pod = overlay_pod(_base_pod(job, defaults, 0), job.workers.template)
    canonical = json.dumps(pod, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def owner_reference(job: Job) -> Json:
    """Controller reference without `blockOwnerDeletion`, so that no right on finalizers is needed."""
    return {"apiVersion": c.API_VERSION, "kind": c.KIND, "name": job.name, "uid": job.uid, "controller": True}


def labels(job: Job, component: str) -> dict[str, str]:
    return {
        c.LABEL_JOB_NAME: job.name,
        c.LABEL_JOB_UID: job.uid,
        c.LABEL_APP_NAME: c.APP_NAME,
        c.LABEL_APP_INSTANCE: job.name,
        c.LABEL_APP_COMPONENT: component,
        c.LABEL_APP_MANAGED_BY: c.MANAGED_BY,
    }


def _template_trainer(job: Job) -> Json:
    containers = (job.workers.template.get("spec") or {}).get("containers") or ()
    return next((entry for entry in containers if entry.get("name") == c.CONTAINER_TRAINER), {})


def _base_pod(job: Job, defaults: PodDefaults, index: int) -> Json:
    foreign = bool(job.trainer.image) and job.trainer.image != defaults.image
    spec: Json = {
        "restartPolicy": "Never",
        "hostname": f"{job.name}-{index}",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": c.DEFAULT_GRACE_SECONDS,
        "securityContext": pod_security(),
        "tolerations": _tolerations(),
        "containers": [_trainer(job, defaults, index, foreign)],
        "volumes": _volumes(job, foreign),
    }
    if job.intra_job_communication:
        spec["subdomain"] = job.name
    if defaults.pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in defaults.pull_secrets]
    if foreign:
        spec["initContainers"] = [_agent_copy(defaults)]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "labels": labels(job, c.COMPONENT_WORKER) | {c.LABEL_WORKER_INDEX: str(index)},
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(names.AGENT_METRICS_PORT),
                "prometheus.io/path": "/metrics",
                "kubectl.kubernetes.io/default-container": c.CONTAINER_TRAINER,
            },
        },
        "spec": spec,
    }


def _trainer(job: Job, defaults: PodDefaults, index: int, foreign: bool) -> Json:
    from_template = _template_trainer(job)
    # A ConfigMap with the script is the working directory, so that `python train.py` finds it.
    working_dir = job.trainer.working_dir or (c.CODE_DIR if job.trainer.code_config_map else "")
    user = merge_env(from_template.get("env") or (), job.trainer.env)
    container: Json = {
        "name": c.CONTAINER_TRAINER,
        "image": job.trainer.image or defaults.image,
        "command": _agent_command(job, foreign),
        "env": merge_env(_own_env(job, index), _default_env(), [entry for entry in user if not _is_owned(str(entry.get("name")))]),
        "resources": job.workers.resources,
        "ports": [{"name": c.METRICS_PORT_NAME, "containerPort": names.AGENT_METRICS_PORT}],
        "volumeMounts": _mounts(job, foreign, working_dir),
        "securityContext": container_security(),
        "terminationMessagePath": c.TERMINATION_LOG,
    }
    if job.trainer.env_from:
        container["envFrom"] = list(job.trainer.env_from)
    if working_dir:
        container["workingDir"] = working_dir
    if defaults.pull_policy and not foreign:
        container["imagePullPolicy"] = defaults.pull_policy
    return container


def _agent_command(job: Job, foreign: bool) -> list[str]:
    """The agent is the container's command in any image; the job's own command follows after `--`.

    Neither way puts the working directory on the agent's `sys.path`, where a user's `queue.py` would shadow the standard library's.
    """
    command = [*job.trainer.command, *job.trainer.args]
    if not foreign:
        return ["python3", "-P", "-m", "lepton_trainer.agent", "--", *command]
    python = command[0] if _PYTHON.match(posixpath.basename(command[0])) else "python3"
    return [python, f"{names.AGENT_DIR}/lepton_trainer/agent", "--", *command]


def _agent_copy(defaults: PodDefaults) -> Json:
    container: Json = {
        "name": c.CONTAINER_AGENT_COPY,
        "image": defaults.image,
        "command": ["python3", "-P", "-m", "lepton_trainer.agent", "install", c.COPY_DIR],
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}},
        "volumeMounts": [{"name": c.VOLUME_AGENT, "mountPath": c.COPY_DIR}],
        "securityContext": container_security(),
    }
    if defaults.pull_policy:
        container["imagePullPolicy"] = defaults.pull_policy
    return container


def _own_env(job: Job, index: int) -> list[Json]:
    template_spec = job.workers.template.get("spec") or {}
    grace = template_spec.get("terminationGracePeriodSeconds")
    values = {
        names.NAMESPACE: job.namespace,
        names.JOB_NAME: job.name,
        names.JOB_UID: job.uid,
        names.WORKER_INDEX: str(index),
        names.COORDINATOR: f"file:{c.COORDINATOR_FILE}",
        names.TOKEN_FILE: c.TOKEN_FILE,
        names.CA_FILE: c.CA_FILE,
        names.PROCS: str(job.workers.procs),
        names.GRACE_SECONDS: str(c.DEFAULT_GRACE_SECONDS if grace is None else grace),
        names.METRICS_PORT: str(names.AGENT_METRICS_PORT),
        names.RUN_DIR: f"{c.HOME_DIR}/run",
        names.TERMINATION_LOG: c.TERMINATION_LOG,
        "LEPTON_JOB_WORKER_PREFIX": job.name,
        "LEPTON_JOB_SERVICE_PREFIX": job.name,
        "LEPTON_SUBDOMAIN": job.name if job.intra_job_communication else "",
        "LEPTON_RESOURCE_ACCELERATOR_NUM": str(accelerators(job.workers.resources)),
        "LEPTON_RESOURCE_ACCELERATOR_TYPE": _accelerator_type(job.workers.resources, template_spec),
    }
    if job.checkpoint:
        values[names.CHECKPOINT_DIR] = posixpath.join(checkpoint_root(job), job.first_round)
    if job.trainer.builtin:
        values[names.BUILTIN] = job.trainer.builtin
    if job.from_logs:
        values[names.LOG_PATTERNS] = json.dumps([{"name": entry.name, "pattern": entry.pattern} for entry in job.from_logs])
    fields = {
        names.WORKER_UID: "metadata.uid",
        names.WORKER_NAME: "metadata.name",
        "LEPTON_WORKER_ID": "metadata.name",
        names.HOST: "status.podIP",
    }
    plain = [{"name": name, "value": value} for name, value in values.items()]
    return plain + [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]


def checkpoint_root(job: Job) -> str:
    """Where the job's checkpoints lie in its pods, each round's in a directory of its own; empty where it keeps none."""
    return posixpath.join(c.CHECKPOINTS_DIR, job.checkpoint.path) if job.checkpoint else ""


def _accelerator_type(resources: Json, template_spec: Json) -> str:
    """The product that the template's node selector names, else the resource that is asked for; empty on CPUs."""
    kinds = list(accelerators_asked(resources))
    if not kinds:
        return ""
    selector = template_spec.get("nodeSelector") or {}
    return str(selector.get("nvidia.com/gpu.product") or selector.get("amd.com/gpu.product-name") or kinds[0])


def user_env(job: Job) -> list[Json]:
    """The variables that the user gives every process, without those that are ours."""
    user = merge_env(_template_trainer(job).get("env") or (), job.trainer.env)
    return [entry for entry in user if not _is_owned(str(entry.get("name")))]


def process_env(user: list[Json]) -> list[Json]:
    """The defaults that a process of ours needs in any image, under the user's own."""
    return merge_env(_default_env(), user)


def _default_env() -> list[Json]:
    """What a pod with an unknown uid and an image without such a user needs to run Python and torch at all; the user's values win."""
    values = {
        "HOME": c.HOME_DIR,
        "USER": "lepton",
        "LOGNAME": "lepton",
        "TORCHINDUCTOR_CACHE_DIR": f"{c.HOME_DIR}/cache/inductor",
        "TRITON_CACHE_DIR": f"{c.HOME_DIR}/cache/triton",
        "PYTHONUNBUFFERED": "1",
    }
    return [{"name": name, "value": value} for name, value in values.items()]


def _mounts(job: Job, foreign: bool, working_dir: str) -> list[Json]:
    mounts: list[Json] = [
        {"name": c.VOLUME_IDENTITY, "mountPath": c.IDENTITY_DIR, "readOnly": True},
        {"name": c.VOLUME_HOME, "mountPath": c.HOME_DIR},
    ]
    if foreign:
        mounts.append({"name": c.VOLUME_AGENT, "mountPath": names.AGENT_DIR, "readOnly": True})
    if job.workers.shared_memory:
        mounts.append({"name": c.VOLUME_SHARED_MEMORY, "mountPath": c.SHARED_MEMORY_DIR})
    if job.checkpoint:
        mounts.append({"name": c.VOLUME_CHECKPOINTS, "mountPath": c.CHECKPOINTS_DIR})
    if job.trainer.code_config_map:
        mounts.append({"name": c.VOLUME_CODE, "mountPath": working_dir, "readOnly": True})
    return mounts


def _volumes(job: Job, foreign: bool) -> list[Json]:
    token = {"audience": names.TOKEN_AUDIENCE, "expirationSeconds": c.TOKEN_SECONDS, "path": posixpath.basename(c.TOKEN_FILE)}
    told = [
        {"path": posixpath.basename(file), "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
        for file, annotation in ((c.CA_FILE, c.ANNOTATION_CA), (c.COORDINATOR_FILE, c.ANNOTATION_COORDINATOR))
    ]
    volumes: list[Json] = [
        {
            "name": c.VOLUME_IDENTITY,
            "projected": {"sources": [{"serviceAccountToken": token}, {"downwardAPI": {"items": told}}]},
        },
        {"name": c.VOLUME_HOME, "emptyDir": {}},
    ]
    if foreign:
        volumes.append({"name": c.VOLUME_AGENT, "emptyDir": {"sizeLimit": "16Mi"}})
    if job.workers.shared_memory:
        volumes.append({"name": c.VOLUME_SHARED_MEMORY, "emptyDir": {"medium": "Memory", "sizeLimit": job.workers.shared_memory}})
    if job.checkpoint:
        volumes.append({"name": c.VOLUME_CHECKPOINTS, "persistentVolumeClaim": {"claimName": job.checkpoint.claim_name}})
    if job.trainer.code_config_map:
        volumes.append({"name": c.VOLUME_CODE, "configMap": {"name": job.trainer.code_config_map, "defaultMode": 0o555}})
    return volumes


def pod_security() -> Json:
    return {
        "runAsNonRoot": True,
        "runAsUser": c.DEFAULT_UID,
        "runAsGroup": c.DEFAULT_UID,
        "fsGroup": c.DEFAULT_UID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> Json:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _tolerations() -> list[Json]:
    return [
        {"key": f"node.kubernetes.io/{state}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": c.UNREACHABLE_SECONDS}
        for state in ("not-ready", "unreachable")
    ]


def build_service(job: Job) -> Json:
    """The headless Service under which the pods of a job find each other: `<job>-<index>.<job>`, before they are ready too."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": job.name,
            "namespace": job.namespace,
            "labels": labels(job, c.COMPONENT_SERVICE),
            "ownerReferences": [owner_reference(job)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {c.LABEL_JOB_NAME: job.name, c.LABEL_JOB_UID: job.uid},
        },
    }


NOTE_BYTES = 1024
"""The API server refuses an event whose note is longer."""


def build_event(job: Job, event: Event, name: str, instance: str, now: float) -> Json:
    """An events.k8s.io/v1 Event about the job; `now` in unix seconds, `instance` names the operator's pod."""
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": job.namespace},
        "eventTime": format_micro_time(now),
        "reportingController": c.REPORTING_CONTROLLER,
        "reportingInstance": instance[:128],
        "action": event.action,
        "reason": event.reason,
        "regarding": {"apiVersion": c.API_VERSION, "kind": c.KIND, "namespace": job.namespace, "name": job.name, "uid": job.uid},
        "note": shorten(event.message, NOTE_BYTES),
        "type": event.type,
    }


def shorten(text: str, limit: int) -> str:
    """`text` in at most `limit` bytes of UTF-8, cut between characters."""
    data = text.encode("utf-8", "replace")
    return text if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "..."
