"""From the API's JSON to what decisions need: a Pod becomes a `Worker`, a Node becomes "ready or not". Pure; the words of whoever reported
a trouble (kubelet, scheduler) are kept for the user."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lepton_operator import constants as c
from lepton_operator.job import parse_time
from lepton_operator.worker import Phase, Worker

Json = Mapping[str, Any]

WAITING_WITHOUT_TROUBLE = frozenset({"", "ContainerCreating", "PodInitializing"})
MESSAGE_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Pod:
    """A worker with what the cache needs to find it again."""

    namespace: str
    owner_uid: str  # of the controlling LeptonTrainingJob
    owner_name: str
    labelled_job: str
    ca: str  # digest of the CA that it was told to trust
    coordinator: str  # the address at which it was told to find the coordinator; empty: it cannot be told another
    worker: Worker

    @property
    def job_key(self) -> str:
        return f"{self.namespace}/{self.owner_name}"


def owner_of(body: Json) -> tuple[str, str]:
    """(name, UID) of the controlling LeptonTrainingJob; ("", "") when something else, or nothing, controls the object."""
    for reference in (body.get("metadata") or {}).get("ownerReferences") or ():
        if (
            reference.get("controller")
            and reference.get("kind") == c.KIND
            and str(reference.get("apiVersion", "")).startswith(c.GROUP + "/")
        ):
            return str(reference.get("name", "")), str(reference.get("uid", ""))
    return "", ""


def read_pod(body: Json) -> Pod:
    """The projection of a Pod that carries our job label."""
    meta, spec, status = body.get("metadata") or {}, body.get("spec") or {}, body.get("status") or {}
    labels, annotations = meta.get("labels") or {}, meta.get("annotations") or {}
    owner_name, owner_uid = owner_of(body)
    container = _status_of(status.get("containerStatuses"), c.CONTAINER_TRAINER)
    state = container.get("state") or {}
    ended = state.get("terminated") or {}
    started = (state.get("running") or ended).get("startedAt") or ""
    scheduled = _condition(status, "PodScheduled")
    trouble, message = _trouble(status, scheduled)
    code = ended.get("exitCode")
    index = str(labels.get(c.LABEL_WORKER_INDEX, ""))
    worker = Worker(
        name=str(meta.get("name", "")),
        uid=str(meta.get("uid", "")),
        index=int(index) if index.isdigit() else -1,
        phase=_phase(str(status.get("phase", "")), state),
        resource_version=str(meta.get("resourceVersion", "")),
        created=parse_time(meta.get("creationTimestamp") or ""),
        deleting=bool(meta.get("deletionTimestamp")),
        node=str(spec.get("nodeName") or ""),
        scheduled=bool(spec.get("nodeName")) or scheduled.get("status") == "True",
        trouble=trouble,
        trouble_message=message[:MESSAGE_BYTES],
        exit_code=code,
        signal=_signal(ended),
        oom_killed=ended.get("reason") == "OOMKilled",
        evicted=_evicted(status),
        result=str(ended.get("message") or ""),
        started=parse_time(started),
        template=str(annotations.get(c.ANNOTATION_TEMPLATE, "")),
        ended=parse_time(ended.get("finishedAt") or ""),
        lingering=bool(ended) and status.get("phase") not in ("Succeeded", "Failed"),
    )
    return Pod(
        namespace=str(meta.get("namespace", "")),
        owner_uid=owner_uid,
        owner_name=owner_name,
        labelled_job=str(labels.get(c.LABEL_JOB_NAME, "")),
        ca=digest(str(annotations.get(c.ANNOTATION_CA, ""))),
        coordinator=str(annotations.get(c.ANNOTATION_COORDINATOR, "")),
        worker=worker,
    )


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_node_ready(body: Json) -> bool:
    """Whether the node's kubelet reports itself ready, and the cluster believes it."""
    return _condition(body.get("status") or {}, "Ready").get("status") == "True"


def _condition(status: Json, kind: str) -> Json:
    return next((entry for entry in status.get("conditions") or () if entry.get("type") == kind), {})


def _status_of(statuses: Any, name: str) -> Json:
    return next((entry for entry in statuses or () if entry.get("name") == name), {})


def _phase(phase: str, state: Json) -> Phase:
    """The pod's phase by its trainer container: a sidecar that still runs does not keep a worker alive."""
    if phase == "Succeeded":
        return Phase.SUCCEEDED
    if phase == "Failed":
        return Phase.FAILED
    if "terminated" in state:
        return Phase.SUCCEEDED if state["terminated"].get("exitCode") == 0 else Phase.FAILED
    return Phase.RUNNING if "running" in state else Phase.PENDING


def _signal(ended: Json) -> int | None:
    """The runtime's word, else the shell's convention of 128 + signal."""
    if ended.get("signal"):
        return int(ended["signal"])
    code = ended.get("exitCode")
    return int(code) - 128 if isinstance(code, int) and 128 < code <= 128 + 64 else None


def _trouble(status: Json, scheduled: Json) -> tuple[str, str]:
    """What keeps the pod from running: (reason, the reporter's words); empty strings when nothing is known to."""
    trainer = _status_of(status.get("containerStatuses"), c.CONTAINER_TRAINER).get("state") or {}
    ended = trainer.get("terminated") or {}
    if ended.get("reason") in ("StartError", "ContainerCannotRun"):
        return str(ended["reason"]), f"container {c.CONTAINER_TRAINER}: {ended.get('message', '')}"
    # Once the trainer has run, its neighbours are to blame for nothing: a sidecar that is stopped after it ends with 143.
    for group in () if ended or "running" in trainer else ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group) or ():
            state = container.get("state") or {}
            waiting = state.get("waiting") or {}
            if waiting.get("reason", "") not in WAITING_WITHOUT_TROUBLE:
                return str(waiting["reason"]), f"container {container.get('name')}: {waiting.get('message') or waiting['reason']}"
            failed = state.get("terminated") or {}
            if group == "initContainerStatuses" and failed.get("exitCode"):
                words = failed.get("message") or f"exit code {failed['exitCode']} ({failed.get('reason', 'Error')})"
                return "InitContainerFailed", f"init container {container.get('name')}: {words}"
    if scheduled.get("status") == "False":
        return str(scheduled.get("reason") or "Unschedulable"), str(scheduled.get("message") or "")
    if status.get("phase") == "Failed" and status.get("reason"):
        return str(status["reason"]), str(status.get("message") or "")
    return "", ""


def _evicted(status: Json) -> str:
    disruption = _condition(status, "DisruptionTarget")
    if disruption.get("status") == "True":
        return str(disruption.get("reason") or "Disrupted")
    reason = str(status.get("reason") or "")
    return reason if reason in ("Evicted", "Preempting", "Shutdown", "NodeShutdown", "Terminated", "NodeLost") else ""
