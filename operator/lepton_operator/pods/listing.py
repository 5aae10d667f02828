"""Keeps the cache true by LISTs, and decides which namespaces can be served at all.

A broken watch can miss a deletion and kopf does not make up for it; a LIST does: before the watches start, every ten minutes, and soon
after anything that a watch may not have survived (the API server was away, a watch started anew, leadership came). A namespace that is
refused (it was deleted, or its Role) is let go with all that was known of it, asked again later, and costs the others nothing.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Any

from lepton_operator import clock
from lepton_operator import constants as c
from lepton_operator.pods.api import Api, Expired
from lepton_operator.pods.cache import JOBS, NODES, PODS, Cache
from lepton_operator.pods.handlers import kopf_registry, kopf_settings, listen_until_broken
from lepton_operator.substrate import Gone, Rejected, Unavailable

log = logging.getLogger(__name__)

RELIST_SECONDS = 600.0
REFUSED_SECONDS = 30.0
RETRY_SECONDS = 1.0
LONGEST_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""Watches that lasted so long start again at once; those that end at once ever more patiently."""
SOON_SECONDS = 2.0
"""At most one LIST asked for within so long: a watch that starts anew delivers every object it has."""


class Listener:
    """Feeds the cache for the life of the process; `primed` once every namespace that can be served has been listed.

    `changed(keys)` is told of the jobs to look at, `deleted(number)` of jobs that are gone.
    """

    def __init__(
        self,
        api: Api,
        cache: Cache,
        namespaces: tuple[str, ...],
        changed: Callable[[frozenset[str]], None],
        deleted: Callable[[int], None],
        restore_signals: Callable[[], None],
    ) -> None:
        self.primed = asyncio.Event()
        self.why_not = "the cache is not primed yet"
        self._api, self._cache, self._changed, self._deleted = api, cache, changed, deleted
        self._restore_signals = restore_signals
        self._scopes: tuple[str | None, ...] = namespaces or (None,)
        self._served: set[str | None] = set()
        self._served_changed = asyncio.Event()
        self._relist_wanted = asyncio.Event()
        if not namespaces:
            cache.watch_nodes()

    @property
    def watches_nodes(self) -> bool:
        return self._scopes == (None,)

    async def run(self) -> None:
        """Until cancelled."""
        while not await self._list_all():  # noqa: ASYNC110 - it is the server that is waited for
            await asyncio.sleep(RETRY_SECONDS)
        self.primed.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._relist(), name="relist")
            group.create_task(self._listen(), name="kopf")

    def relist_soon(self) -> None:
        """Something happened that a watch may not have survived."""
        self._relist_wanted.set()

    async def _relist(self) -> None:
        complete = True
        while True:
            seconds = RELIST_SECONDS if len(self._served) == len(self._scopes) else REFUSED_SECONDS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds * random.uniform(0.9, 1.1) if complete else SOON_SECONDS):
                    await self._relist_wanted.wait()
                await asyncio.sleep(SOON_SECONDS)
            self._relist_wanted.clear()
            complete = await self._list_all()

    async def _listen(self) -> None:
        registry = kopf_registry(self._hear, self.watches_nodes, self._api.configuration)
        pause = RETRY_SECONDS
        while True:
            self._served_changed.clear()
            namespaces = {scope for scope in self._served if scope is not None}
            if not namespaces and not self.watches_nodes:
                await self._served_changed.wait()
                continue
            began = clock.mono()
            listening = asyncio.create_task(
                listen_until_broken(registry, kopf_settings(), namespaces, self._restore_signals), name="kopf watches"
            )
            stale = asyncio.create_task(self._served_changed.wait())
            try:
                await asyncio.wait({listening, stale}, return_when=asyncio.FIRST_COMPLETED)
                if listening.done():
                    error = None if listening.cancelled() else listening.exception()
                    log.warning("the watches ended and start again: %s", error or "no error was given")
            finally:
                for task in (listening, stale):
                    task.cancel()
                await asyncio.gather(listening, stale, return_exceptions=True)
            pause = RETRY_SECONDS if clock.mono() - began > STEADY_SECONDS else min(LONGEST_SECONDS, 2 * pause)
            await asyncio.sleep(pause)
            await self._list_all()

    def _hear(self, kind: str, body: Any, change: str | None) -> None:
        """From a watch. `None` is an object of kopf's own LIST, so a watch has started anew."""
        if change is None:
            self.relist_soon()
        self._deliver(kind, body, change == "DELETED")

    def _deliver(self, kind: str, body: Any, gone: bool) -> None:
        keys = self._cache.apply(kind, body, gone)
        if keys:
            if gone and kind == JOBS:
                self._deleted(len(keys))
            self._changed(keys)

    async def _list_all(self) -> bool:
        """One LIST of everything; true when each scope was either listed or refused for good."""
        served: set[str | None] = set()
        complete = True
        for scope in self._scopes:
            try:
                await self._list(JOBS, scope)
                await self._list(PODS, scope)
                if scope is None:
                    await self._list(NODES, scope)
                served.add(scope)
            except Rejected as error:
                self._refused(scope, error)
                complete = complete and scope is not None
            except Gone:
                self._not_ready(f"the CRD {c.PLURAL}.{c.GROUP} is not installed: apply it, or install the chart with crd.install=true")
                complete = False
            except (Unavailable, Expired) as error:
                self._not_ready(f"listing {scope or 'the cluster'}: {error}")
                served |= {scope} & self._served
                complete = False
        if served != self._served:
            self._served = served
            self._served_changed.set()
        return complete

    def _not_ready(self, why: str) -> None:
        if why != self.why_not:
            log.warning("%s", why)
        self.why_not = why

    def _refused(self, scope: str | None, error: Rejected) -> None:
        if scope is None:
            self._not_ready(f"the cluster cannot be listed: {error.message}; give the operator its ClusterRole, or use --watch-namespace")
            return
        if scope in self._served or not self.primed.is_set():
            log.warning("namespace %s is not served: %s", scope, error.message)
        self._changed(self._cache.let_go(scope))

    async def _list(self, kind: str, scope: str | None) -> None:
        path = {
            JOBS: f"/apis/{c.API_VERSION}" + (f"/namespaces/{scope}" if scope else "") + f"/{c.PLURAL}",
            PODS: "/api/v1" + (f"/namespaces/{scope}" if scope else "") + "/pods",
            NODES: "/api/v1/nodes",
        }[kind]
        listed: set[str] = set()
        version = ""
        async for items, list_version in self._api.pages(
            kind if kind != JOBS else c.PLURAL, path, c.LABEL_JOB_NAME if kind == PODS else ""
        ):
            version = list_version
            for body in items:
                listed.add(str((body.get("metadata") or {}).get("uid", "")))
                self._deliver(kind, body, False)
            await asyncio.sleep(0)  # between pages others have their turn
        gone = self._cache.forget_missing(kind, scope, listed, version)
        if gone:
            if kind == JOBS:
                self._deleted(len(gone))
            self._changed(gone)
