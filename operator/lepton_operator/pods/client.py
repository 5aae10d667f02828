"""Acts on a cluster: the `Substrate` whose workers are pods. It decides nothing; what it writes enters the cache before it returns.

Every write is conditional (status and deletes) or idempotent (creates by a name chosen once), so that repeating one is always safe.
"""

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any

from lepton_operator import constants as c
from lepton_operator.job import Job
from lepton_operator.pods import deployments
from lepton_operator.pods.api import AlreadyExists, Api
from lepton_operator.pods.cache import JOBS, PODS, Cache
from lepton_operator.pods.events import Recorder
from lepton_operator.pods.manifests import PodDefaults, build_pod, build_service, checkpoint_root, owned_env
from lepton_operator.pods.overlay import TemplateError
from lepton_operator.pods.projection import Pod, digest, owner_of, read_pod
from lepton_operator.substrate import Conflict, Event, Gone, Rejected, Served, Unavailable
from lepton_operator.worker import Phase, Worker

log = logging.getLogger(__name__)

SERVICE_CHECK_SECONDS = 600.0
TELL_BATCH = 16
STRICTLY = {"fieldValidation": "Strict"}
"""The API server names a mistyped field of a pod template instead of dropping it."""


class ClusterSubstrate:
    """`Substrate` on Kubernetes. `defaults` may be replaced at any time (a new CA); it holds for pods made from then on."""

    serves = True

    def __init__(self, api: Api, cache: Cache, defaults: PodDefaults, instance: str) -> None:
        self.defaults = defaults
        self._api = api
        self._cache = cache
        self._events = Recorder(api, instance)
        self._telling: set[asyncio.Task[None]] = set()
        self._services: dict[str, float] = {}  # UID of a job -> when its Service was last seen (monotonic seconds)

    def job(self, key: str) -> Job | None:
        return self._cache.job(key)

    def workers(self, job: Job) -> list[Worker]:
        return self._cache.workers(job.uid)

    async def create_worker(self, job: Job, name: str, index: int) -> Worker:
        path = f"/api/v1/namespaces/{job.namespace}/pods"
        try:
            pod = build_pod(job, self.defaults, name, index)
        except TemplateError as error:
            raise Rejected("Invalid", str(error)) from None
        try:
            body = await self._api.request("create", "pods", path, STRICTLY, body=pod)
        except AlreadyExists:
            body = await self._own_pod(job, f"{path}/{name}", name)
        except Gone as error:
            raise Rejected("NamespaceMissing", str(error)) from None
        except Conflict as error:  # of a quota that others write too, never of the pod
            raise Unavailable(str(error), retry_after=0.2) from None
        self._cache.apply(PODS, body)
        ignored = owned_env(job)
        if ignored:
            about = f"set by the operator, not by the job: {', '.join(ignored)}; remove it"
            told = asyncio.create_task(self.emit(job, Event("Warning", "EnvironmentIgnored", about)))  # no worker waits for that
            self._telling.add(told)
            told.add_done_callback(self._telling.discard)
        return read_pod(body).worker

    async def _own_pod(self, job: Job, path: str, name: str) -> dict[str, Any]:
        """The existing pod, if it is ours: an earlier try of this create arrived. Anybody else's is left alone."""
        try:
            body = await self._api.request("get", "pods", path)
        except Gone:
            raise Unavailable(f"pod {name} is just going away", retry_after=0.5) from None
        if owner_of(body)[1] != job.uid:
            raise Rejected("NameConflict", f"a pod named {name} exists and does not belong to this job; another name is tried")
        return body

    async def delete_worker(self, job: Job, worker: Worker, grace_seconds: float | None) -> None:
        conditions = {"uid": worker.uid} | ({"resourceVersion": worker.resource_version} if worker.resource_version else {})
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = max(0, int(grace_seconds))
        path = f"/api/v1/namespaces/{job.namespace}/pods/{worker.name}"
        try:
            body = await self._api.request("delete", "pods", path, body=options)
        except Conflict:
            await self._read_again(PODS, "pods", path)
            raise
        except Gone:
            self._cache.apply(PODS, {"metadata": {"namespace": job.namespace, "name": worker.name, "uid": worker.uid}}, deleted=True)
            raise
        if body.get("kind") != "Pod":
            return
        if (body.get("metadata") or {}).get("deletionTimestamp"):
            self._cache.apply(PODS, body)
        else:
            self._cache.apply(PODS, body, deleted=True)  # it was removed at once

    async def write_status(self, job: Job, status: dict[str, Any]) -> None:
        metadata = {"name": job.name, "namespace": job.namespace, "uid": job.uid, "resourceVersion": job.resource_version}
        body = {"apiVersion": c.API_VERSION, "kind": c.KIND, "metadata": metadata, "status": status}
        path = f"/apis/{c.API_VERSION}/namespaces/{job.namespace}/{c.PLURAL}/{job.name}"
        try:
            written = await self._api.request("update", f"{c.PLURAL}/status", f"{path}/status", body=body)
        except Conflict:
            await self._read_again(JOBS, c.PLURAL, path)
            raise
        self._cache.apply(JOBS, written)

    async def _read_again(self, kind: str, resource: str, path: str) -> None:
        """After a 409: one GET, so that the next plan does not lose against a watch that is late."""
        try:
            self._cache.apply(kind, await self._api.request("get", resource, path))
        except (Gone, Rejected, Unavailable) as error:
            log.debug("%s could not be read again: %s", path, error)

    async def ensure_service(self, job: Job) -> None:
        now = time.monotonic()
        if now - self._services.get(job.uid, float("-inf")) < SERVICE_CHECK_SECONDS:
            return
        path = f"/api/v1/namespaces/{job.namespace}/services"
        try:
            await self._api.request("create", "services", path, body=build_service(job))
        except AlreadyExists:
            try:
                body = await self._api.request("get", "services", f"{path}/{job.name}")
            except Gone:
                raise Unavailable(f"service {job.name} is just going away", retry_after=0.5) from None
            if owner_of(body)[1] != job.uid:
                message = f"a Service named {job.name} exists and does not belong to this job: delete it, or give the job another name"
                raise Rejected("NameConflict", message) from None
        except Gone as error:
            raise Rejected("NamespaceMissing", str(error)) from None
        except Conflict as error:
            raise Unavailable(str(error), retry_after=0.2) from None
        self._services = {uid: seen for uid, seen in self._services.items() if now - seen < SERVICE_CHECK_SECONDS} | {job.uid: now}

    async def served(self, job: Job, directory: str) -> Served:
        return await deployments.read(self._api, job, self.defaults, directory)

    async def serve(self, job: Job, directory: str) -> None:
        await deployments.ensure(self._api, job, self.defaults, directory)

    async def stop_serving(self, job: Job) -> None:
        await deployments.remove(self._api, job)

    def checkpoints(self, job: Job) -> str:
        return checkpoint_root(job)

    async def emit(self, job: Job, event: Event) -> None:
        await self._events.emit(job, event)

    async def introduce(self, ca: str, manager: str) -> int:
        """Makes the workers of `manager`'s jobs, those that exist too, find our coordinator and trust `ca` (PEM); how many were told.

        Only a change costs writes: a new CA, or a job that was taken over from another installation. To be repeated: a pod that could
        not be told now is told then."""
        self.defaults = replace(self.defaults, ca=ca)
        known, here = digest(ca), self.defaults.coordinator
        behind = [
            pod
            for pod in self._cache.pods()
            if pod.owner_uid and (pod.ca != known or pod.coordinator not in ("", here))
            if pod.worker.phase in (Phase.PENDING, Phase.RUNNING) and not pod.worker.deleting
            if self._cache.manager(pod.job_key) == manager
        ]
        for at in range(0, len(behind), TELL_BATCH):
            await asyncio.gather(*(self._tell(pod, ca) for pod in behind[at : at + TELL_BATCH]))
        return len(behind)

    async def _tell(self, pod: Pod, ca: str) -> None:
        annotations = {c.ANNOTATION_CA: ca} | ({c.ANNOTATION_COORDINATOR: self.defaults.coordinator} if pod.coordinator else {})
        patch = {"metadata": {"uid": pod.worker.uid, "annotations": annotations}}
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.worker.name}"
        try:
            body = await self._api.request("patch", "pods", path, body=patch, content_type="application/merge-patch+json")
        except (Conflict, Gone, Rejected, Unavailable) as error:
            log.info("pod %s was not told where its coordinator is: %s", pod.worker.name, error, extra={"job": pod.job_key})
            return
        self._cache.apply(PODS, body)
