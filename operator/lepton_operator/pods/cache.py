"""Remembers the newest known jobs, pods and nodes as slotted projections, never the API's whole objects. From memory, without I/O.

Three streams feed it: watches, paged LISTs and the responses to our own writes. They overtake each other, so an object is replaced only
by one whose resourceVersion is not lower, and a UID that was deleted never comes back. A change returns the keys of the jobs it concerns.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from lepton_operator.job import Job, JobError, read_job, read_stub
from lepton_operator.pods.projection import Pod, read_node_ready, read_pod
from lepton_operator.worker import Phase, Worker

Json = Mapping[str, Any]
Keys = frozenset[str]

JOBS, PODS, NODES = "jobs", "pods", "nodes"
TOMBSTONES = 50_000
NOTHING: Keys = frozenset()


@dataclass(frozen=True, slots=True)
class _Entry:
    """One object: who it is, how new it is, and its projection (a `Job`, a `JobError`, a `Pod` or a node's readiness)."""

    namespace: str
    name: str
    uid: str
    version: int
    value: Any


def version_of(text: Any) -> int:
    """A resourceVersion as a number; a server that does not count (none known) makes everything equally new."""
    return int(text) if isinstance(text, str) and text.isdigit() else 0


class Cache:
    """Jobs, pods and nodes by (namespace, name)."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[tuple[str, str], _Entry]] = {JOBS: {}, PODS: {}, NODES: {}}
        self._owned: dict[str, dict[str, Pod]] = {}  # UID of a job -> name of a pod -> pod
        self._dead: OrderedDict[str, None] = OrderedDict()  # UIDs, oldest first
        self._watches_nodes = False
        self._notes: dict[str, tuple[str, str]] = {}  # UID of a pod -> (reason, message) of what its status does not tell

    def job(self, key: str) -> Job | None:
        """The newest known job of "namespace/name"; None when there is none. Raises its `JobError` when it cannot be read."""
        namespace, _, name = key.partition("/")
        entry = self._objects[JOBS].get((namespace, name))
        if entry is not None and isinstance(entry.value, JobError):
            raise JobError(str(entry.value), entry.value.stub)
        return entry.value if entry else None

    def job_uid(self, key: str) -> str:
        """The UID of a known job, readable or not; empty when there is none."""
        namespace, _, name = key.partition("/")
        entry = self._objects[JOBS].get((namespace, name))
        return entry.uid if entry else ""

    def manager(self, key: str) -> str:
        """The installation that has claimed a known job, readable or not; empty: none."""
        try:
            job = self.job(key)
        except JobError as error:
            job = error.stub
        return str(job.status.get("manager", "")) if job is not None else ""

    def keys(self) -> list[str]:
        return [f"{namespace}/{name}" for namespace, name in self._objects[JOBS]]

    def workers(self, job_uid: str) -> list[Worker]:
        """The pods that this job's UID controls, by index and age, with what is known of their nodes."""
        pods = sorted(self._owned.get(job_uid, {}).values(), key=lambda pod: (pod.worker.index, pod.worker.created, pod.worker.name))
        return [self._with_node(self._with_note(pod.worker)) for pod in pods]

    def pod(self, namespace: str, name: str) -> Pod | None:
        entry = self._objects[PODS].get((namespace, name))
        return entry.value if entry else None

    def pods(self) -> Iterable[Pod]:
        return [entry.value for entry in self._objects[PODS].values()]

    def _with_note(self, worker: Worker) -> Worker:
        if worker.phase is not Phase.PENDING or worker.trouble or worker.uid not in self._notes:
            return worker
        reason, message = self._notes[worker.uid]
        return replace(worker, trouble=reason, trouble_message=message)

    def note(self, pod_uid: str, reason: str, message: str) -> Keys:
        """What keeps a pending pod from starting, learned elsewhere than in its status; it counts until the pod starts or is gone."""
        pod = next((pod for pod in self.pods() if pod.worker.uid == pod_uid), None)
        if pod is None or self._notes.get(pod_uid) == (reason, message):
            return NOTHING
        self._notes[pod_uid] = (reason, message)
        return frozenset({pod.job_key})

    def _with_node(self, worker: Worker) -> Worker:
        if not self._watches_nodes or not worker.node:
            return worker
        node = self._objects[NODES].get(("", worker.node))
        ready = bool(node and node.value)
        return worker if worker.node_ready == ready else replace(worker, node_ready=ready)

    def watch_nodes(self) -> None:
        """From now on a pod's node counts: one that is not ready, or not known, makes `Worker.node_ready` false."""
        self._watches_nodes = True

    def counts(self) -> dict[str, int]:
        return {kind: len(objects) for kind, objects in self._objects.items()}

    def apply(self, kind: str, body: Json, deleted: bool = False) -> Keys:
        """Takes an object in, or notes that it is gone; the keys of the jobs to look at, none when this told nothing new."""
        meta = body.get("metadata") or {}
        name, uid = str(meta.get("name", "")), str(meta.get("uid", ""))
        where = ("" if kind == NODES else str(meta.get("namespace", "")), name)
        version = version_of(meta.get("resourceVersion"))
        known = self._objects[kind].get(where)
        if deleted:
            self._bury(uid)
            return self._drop(kind, where) if known is not None and known.uid == uid else NOTHING
        if uid in self._dead or (known is not None and version < known.version):
            return NOTHING
        if known is not None and known.uid == uid and version == known.version:
            return NOTHING
        return self._put(kind, where, _Entry(*where, uid, version, _project(kind, body)), known)

    def _put(self, kind: str, where: tuple[str, str], entry: _Entry, known: _Entry | None) -> Keys:
        if known is not None and known.uid != entry.uid:
            self._bury(known.uid)
        self._objects[kind][where] = entry
        before = known.value if known else None
        if kind == PODS:
            return self._own(entry.value, before)
        if kind == NODES:
            return NOTHING if before == entry.value else self._keys_on(entry.name)
        return frozenset({"/".join(where)})

    def _own(self, pod: Pod, before: Pod | None) -> Keys:
        if before is not None:
            self._disown(before)
        if not pod.owner_uid:
            return NOTHING if before is None or not before.owner_uid else frozenset({before.job_key})
        self._owned.setdefault(pod.owner_uid, {})[pod.worker.name] = pod
        if before is not None and replace(before.worker, resource_version=pod.worker.resource_version) == pod.worker:
            return NOTHING  # a change that no decision reads
        return frozenset({pod.job_key})

    def _disown(self, pod: Pod) -> None:
        owned = self._owned.get(pod.owner_uid)
        if owned is not None:
            owned.pop(pod.worker.name, None)
            if not owned:
                del self._owned[pod.owner_uid]

    def _keys_on(self, node: str) -> Keys:
        return frozenset(pod.job_key for pod in self.pods() if pod.worker.node == node and pod.owner_uid)

    def _drop(self, kind: str, where: tuple[str, str]) -> Keys:
        entry = self._objects[kind].pop(where)
        if kind == PODS:
            self._disown(entry.value)
            return frozenset({entry.value.job_key}) if entry.value.owner_uid else NOTHING
        return self._keys_on(entry.name) if kind == NODES else frozenset({"/".join(where)})

    def _bury(self, uid: str) -> None:
        self._notes.pop(uid, None)
        self._dead[uid] = None
        self._dead.move_to_end(uid)
        while len(self._dead) > TOMBSTONES:
            self._dead.popitem(last=False)

    def let_go(self, namespace: str) -> Keys:
        """Forgets a namespace that may not be read any more. Nothing of it is known to be gone, so all of it may come back."""
        found = [(kind, where) for kind in (PODS, JOBS) for where in self._objects[kind] if where[0] == namespace]
        return frozenset().union(*(self._drop(kind, where) for kind, where in found))

    def forget_missing(self, kind: str, namespace: str | None, listed: set[str], list_version: str) -> Keys:
        """After a whole LIST of a namespace (None: of all): what it lacks is gone, unless it is newer than the LIST.

        `listed` holds the UIDs of every page, `list_version` is the LIST's own resourceVersion.
        """
        limit, keys = version_of(list_version), set[str]()
        for where, entry in list(self._objects[kind].items()):
            if entry.uid not in listed and entry.version <= limit and namespace in (None, where[0]):
                self._bury(entry.uid)
                keys |= self._drop(kind, where)
        return frozenset(keys)


def _project(kind: str, body: Json) -> Any:
    if kind == PODS:
        return read_pod(body)
    if kind == NODES:
        return read_node_ready(body)
    slim = {**body, "metadata": {k: v for k, v in (body.get("metadata") or {}).items() if k != "managedFields"}}
    try:
        return read_job(slim)
    except JobError as error:
        return JobError(str(error), read_stub(slim))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        return JobError(f"the job cannot be read: {type(error).__name__}: {error}", read_stub(slim))
