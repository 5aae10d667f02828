"""Listens: kopf's watches of jobs, pods and nodes feed the cache, and the keys of what changed go into the work queue. Nothing else.

kopf's per-object state, finalizers, daemons, timers and event posting are off: it never writes to the cluster. It ends when one of its
watches is refused (a namespace and its Role are deleted), so `listing` decides which namespaces are served and starts it again.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Any

import kopf

from lepton_operator import constants as c
from lepton_operator.pods.cache import JOBS, NODES, PODS

Deliver = Callable[[str, Any, str | None], None]
"""Told (kind, the object's JSON, ADDED, MODIFIED or DELETED; None: found by a LIST when a watch starts)."""

STOP_SECONDS = 1.0


class _NoProgress(kopf.ProgressStorage):
    """No handler here has any progress to keep."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None

    def purge(self, **_: Any) -> None:
        return None

    def touch(self, **_: Any) -> None:
        return None

    def clear(self, *, essence: Any) -> Any:
        return essence


class _NoDiffBase(kopf.DiffBaseStorage):
    """No handler here compares with an earlier state; building it would copy every object that arrives."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        return None


def kopf_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # Namespaces and resources are given; looking for more needs rights that a namespaced installation lacks.
    settings.scanning.disabled = True
    settings.persistence.progress_storage = _NoProgress()
    settings.persistence.diffbase_storage = _NoDiffBase()
    settings.watching.label_selectors["", "v1", "pods"] = c.LABEL_JOB_NAME
    settings.watching.chunk_size = 500
    settings.watching.connect_timeout = 5.0
    settings.networking.request_timeout = 60.0
    settings.networking.error_backoffs = (0.2, 0.5, 1, 2, 3, 5)
    settings.queueing.exit_timeout = 0.1
    settings.process.ultimate_exiting_timeout = None
    return settings


def kopf_registry(deliver: Deliver, watch_nodes: bool, configuration: Any) -> kopf.OperatorRegistry:
    """`configuration` is the client library's: kopf is logged in as the client is, with the token that is valid now."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    async def log_in(**_: Any) -> kopf.ConnectionInfo:
        authorization = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        return kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            ca_data=None if configuration.ssl_ca_cert else configuration.ca_cert_data,
            insecure=not configuration.verify_ssl,
            scheme="Bearer" if authorization else None,
            token=authorization.split()[-1] if authorization else None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
        )

    def listen(kind: str, *resource: str) -> None:
        @kopf.on.event(*resource, registry=registry, id=kind)
        async def on_event(event: Any, **_: Any) -> None:
            deliver(kind, event["object"], event["type"])

    listen(JOBS, c.GROUP, c.VERSION, c.PLURAL)
    listen(PODS, "", "v1", "pods")
    if watch_nodes:
        listen(NODES, "", "v1", "nodes")
    return registry


async def listen_until_broken(
    registry: kopf.OperatorRegistry,
    settings: kopf.OperatorSettings,
    namespaces: Collection[str],
    restore_signals: Callable[[], None],
) -> None:
    """Runs kopf in this loop until cancelled, or until one of its tasks ends; raises what ended it.

    Not `kopf.run` or `kopf.operator`: at their end they cancel every task of the loop, ours too. And kopf takes the process's signals,
    which are given back at once.
    """
    tasks = await kopf.spawn_tasks(
        registry=registry, settings=settings, standalone=True, clusterwide=not namespaces, namespaces=sorted(namespaces)
    )
    restore_signals()
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(tasks, timeout=STOP_SECONDS)
