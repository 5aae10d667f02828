"""Why a scheduled pod does not start, where its status does not say: a missing ConfigMap, Secret or volume is told only in the kubelet's
Events. The pods that have been pending for long are asked about, one LIST each, and the kubelet's words go into the cache."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from lepton_operator import clock
from lepton_operator.pods.api import AlreadyExists, Api, Expired
from lepton_operator.pods.cache import Cache
from lepton_operator.pods.projection import Pod
from lepton_operator.substrate import Conflict, Gone, Rejected, Unavailable
from lepton_operator.worker import Phase

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 8.0
"""A pod that is pending for less is simply starting."""
LOOK_SECONDS = 2.0
AGAIN_SECONDS = 20.0
MOST = 20
"""Pods asked about in one look: thousands that pull an image at once must not use up the operator's requests."""
TOLD_ELSEWHERE = frozenset({"FailedScheduling", "BackOff", "Failed", "Unhealthy", "Preempted"})
"""Reasons of Events that the pod's own status tells too, and better."""


REFUSED_SECONDS = 600.0
"""A namespace whose Events may not be read is left in peace for so long; somebody may grant the right."""


class Diagnosis:
    """Runs on the leader. Needs `list` of core events; of a namespace where it lacks that right it says so once, the others are served."""

    def __init__(self, api: Api, cache: Cache, changed: Callable[[frozenset[str]], None]) -> None:
        self._api, self._cache, self._changed = api, cache, changed
        self._asked: dict[str, float] = {}  # UID of a pod -> clock.mono of the last look
        self._refused: dict[str, float] = {}  # namespace -> clock.mono of the last refusal

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            stuck = [pod for pod in self._stuck() if not self._is_refused(pod.namespace)]
            asked = {pod.worker.uid: self._asked.get(pod.worker.uid, float("-inf")) for pod in stuck}
            self._asked = {uid: at for uid, at in asked.items() if at > 0}
            due = [pod for pod in stuck if clock.mono() - asked[pod.worker.uid] >= AGAIN_SECONDS]
            for pod in sorted(due, key=lambda pod: asked[pod.worker.uid])[:MOST]:
                if self._is_refused(pod.namespace):  # since this round began
                    continue
                self._asked[pod.worker.uid] = clock.mono()
                await self._ask(pod)
            await asyncio.sleep(LOOK_SECONDS)

    def _is_refused(self, namespace: str) -> bool:
        return clock.mono() - self._refused.get(namespace, float("-inf")) < REFUSED_SECONDS

    def _stuck(self) -> list[Pod]:
        before = time.time() - PATIENCE_SECONDS
        return [
            pod
            for pod in self._cache.pods()
            if pod.owner_uid and pod.worker.phase is Phase.PENDING and pod.worker.scheduled and not pod.worker.deleting
            if not pod.worker.trouble and pod.worker.created < before
        ]

    async def _ask(self, pod: Pod) -> None:
        query = {"fieldSelector": f"involvedObject.uid={pod.worker.uid},type=Warning", "limit": "50"}
        try:
            found = await self._api.request("list", "events", f"/api/v1/namespaces/{pod.namespace}/events", query)
        except Rejected as error:
            if pod.namespace not in self._refused:
                about = "why pods of namespace %s do not start cannot be looked up, grant `list` on events: %s"
                log.warning(about, pod.namespace, error.message)
            self._refused[pod.namespace] = clock.mono()
            return
        except (AlreadyExists, Conflict, Expired, Gone, Unavailable) as error:
            log.debug("events of %s: %s", pod.worker.name, error)
            return
        self._refused.pop(pod.namespace, None)
        told = [event for event in found.get("items") or () if event.get("reason") not in TOLD_ELSEWHERE]
        if told:
            newest = max(told, key=_last_seen)
            self._changed(self._cache.note(pod.worker.uid, str(newest.get("reason", "")), str(newest.get("message", ""))))


def _last_seen(event: dict[str, Any]) -> str:
    series = event.get("series") or {}
    return str(series.get("lastObservedTime") or event.get("lastTimestamp") or event.get("eventTime") or "")
