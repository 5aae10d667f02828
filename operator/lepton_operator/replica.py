"""One replica of the operator from start to end: what is wired to what, what starts when leadership comes and stops when it goes.

Every replica listens, keeps its cache and a coordinator; only the leader decides, writes and serves agents. A start: probes, cache, CA,
coordinator, lease. An end: nothing is decided any more, the lease is given back, then the rest.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any

from kubernetes.aio import client as kube

from lepton_operator import clock
from lepton_operator.config import Config
from lepton_operator.constants import lease_name
from lepton_operator.coordinator.link import CoordinatorLink
from lepton_operator.metrics import Deletions, Metrics
from lepton_operator.pods.api import AlreadyExists, Api, Expired, load_configuration
from lepton_operator.pods.authority import AuthorityError, AuthoritySecret, LeafFiles
from lepton_operator.pods.blocking_api import BlockingApi
from lepton_operator.pods.cache import Cache
from lepton_operator.pods.certificates import Authority
from lepton_operator.pods.claims import Claimants
from lepton_operator.pods.client import ClusterSubstrate
from lepton_operator.pods.diagnosis import Diagnosis
from lepton_operator.pods.endpoint import LeaderEndpoint
from lepton_operator.pods.keys import SigningKeys
from lepton_operator.pods.lease import LeaseKeeper
from lepton_operator.pods.listing import Listener
from lepton_operator.pods.manifests import PodDefaults
from lepton_operator.probes import ProbeServer
from lepton_operator.reconciler import JobSummary, Reconciler
from lepton_operator.substrate import Conflict, Gone, Rejected, Unavailable
from lepton_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
NOT_LEADING_SECONDS = 0.5
"""A renewal that comes just after its deadline ends no leadership: what was due in the gap is looked at after it."""
IDENTITY_SECONDS = 600.0
"""How often the CA's Secret and the age of the leaf are looked at."""
INTRODUCE_SECONDS = 15.0
"""How often it is seen to that workers know the coordinator and its CA; where they do it costs no request."""
STOP_SECONDS = 1.5
FAILURES = (AlreadyExists, Conflict, Expired, Gone, Rejected, Unavailable, AuthorityError)


class Replica:
    """Everything of one process; `run` is its life. To be made inside the loop that runs it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._metrics = Metrics()
        self._cache = Cache()
        self._queue = WorkQueue()
        self._stopping = asyncio.Event()
        self._deletions = Deletions(self._metrics.deleted)
        self._term: int | None = None  # of the Lease when this process last began to lead
        self._deadline = 0.0  # clock.mono, of the last renewal; 0: another leads
        self._leading: asyncio.Task[None] | None = None
        self._authority: Authority | None = None
        self._link: CoordinatorLink | None = None
        self._reconciler: Reconciler | None = None
        self._lease_started = False
        self._exit_code = 0
        self._identified = asyncio.Event()
        self._identity_wanted = asyncio.Event()

    async def run(self) -> int:
        """Until SIGTERM or SIGINT (0), or until a part fails that nothing can replace (1)."""
        self._take_signals()
        self._wire(await load_configuration(self._config.kubeconfig))
        probes = ProbeServer(self._metrics.registry, self._why_not_ready)
        await probes.start(self._config.metrics_port)
        parts = [self._part(self._listener.run()), self._part(self._claimants.run()), self._part(self._serve())]
        stopping = self._part(self._stopping.wait())
        try:
            done, _ = await asyncio.wait([stopping, *parts], return_when=asyncio.FIRST_COMPLETED)
            failed = [task for task in done if task is not stopping]
            for task in failed:
                log.critical("a part of the operator ended, so all of it does", exc_info=task.exception())
            return 1 if failed else self._exit_code
        finally:
            await self._stop([stopping, *parts], probes)

    def _wire(self, configuration: kube.Configuration) -> None:
        config = self._config
        api = self._api = Api(configuration, config.api_qps, 2 * config.api_qps, self._metrics.observe_request)
        defaults = PodDefaults(
            config.trainer_image,
            config.coordinator_address,
            pull_policy=config.trainer_pull_policy,
            pull_secrets=config.trainer_pull_secrets,
        )
        self._substrate = ClusterSubstrate(api, self._cache, defaults, config.pod_name)
        self._secret = AuthoritySecret(api, config.namespace, config.ca_secret)
        self._leaf = LeafFiles([config.coordinator_host, f"{config.coordinator_host}.cluster.local", *config.pod_ips])
        self._keys = SigningKeys(api, self._take_keys)
        self._claimants = Claimants(api, config.manager, self._look_at_all)
        self._diagnosis = Diagnosis(api, self._cache, self._changed)
        in_cluster = None if config.kubeconfig else BlockingApi.in_cluster()
        self._lease = self._lease_keeper(in_cluster or BlockingApi.of_configuration(configuration))
        self._endpoint = LeaderEndpoint(
            api,
            namespace=config.namespace,
            service=config.coordinator_service,
            addresses=config.pod_ips,
            port=config.coordinator_port,
            leading=lambda: self.leads,
            pod=config.pod_name if config.in_pod else "",
        )
        self._listener = Listener(api, self._cache, config.watch_namespaces, self._changed, self._deleted, self._take_signals)
        api.on_return = self._listener.relist_soon
        api.may_write = lambda: self.leads
        self._metrics.watch(
            self._summaries,
            leader=lambda: self.leads,
            agents=lambda: self._link.connected if self._link else 0,
            queued=lambda: len(self._queue),
            cached=self._cache.counts,
            node_evidence=self._listener.watches_nodes,
        )

    def _part(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work)

    def _take_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopping.set)

    def _lease_keeper(self, api: BlockingApi) -> LeaseKeeper:
        loop = asyncio.get_running_loop()

        def here(callback: Callable[..., None]) -> Callable[..., None]:
            return lambda *arguments: _quietly(loop, callback, *arguments)

        return LeaseKeeper(
            api=api,
            namespace=self._config.namespace,
            name=lease_name(self._config.release),
            on_acquired=here(self._acquired),
            on_renewed=here(self._renewed),
            on_lost=here(self._lost),
            on_other_holder=here(self._another_leads),
            place=self._config.pod_name if self._config.in_pod else "",
        )

    async def _stop(self, tasks: list[asyncio.Task[Any]], probes: ProbeServer) -> None:
        if self._leading is not None:
            tasks.append(self._leading)
        for task in tasks:
            task.cancel()
        if self._lease_started:
            await asyncio.to_thread(self._lease.stop)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_SECONDS):
                await asyncio.gather(*tasks, return_exceptions=True)
                if self._link is not None:
                    await self._link.stop()
                await probes.stop()
                await self._api.close()
        self._leaf.close()

    # What others tell.

    @property
    def leads(self) -> bool:
        return self._lease.leading

    def _changed(self, keys: frozenset[str]) -> None:
        for key in keys:
            self._queue.add(key)

    def _deleted(self, number: int) -> None:
        self._deletions.seen(number, leads=self.leads, mono=clock.mono())

    def _look_at_all(self) -> None:
        self._changed(frozenset(self._cache.keys()))

    def _take_keys(self, jwks: dict[str, Any], issuer: str) -> None:
        if self._link is not None:
            self._link.set_keys(jwks, issuer)

    def _why_not_ready(self) -> str:
        return "" if self._listener.primed.is_set() else self._listener.why_not

    def _summaries(self) -> Mapping[str, JobSummary]:
        return self._reconciler.summaries() if self._reconciler else {}

    def _acquired(self) -> None:
        self._identity_wanted.set()
        self._deletions.led_from_here(self._lease.unled_since)
        self._leading = self._part(self._lead())
        self._leading.add_done_callback(self._part_ended)

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        """A leader that cannot lead must not hold the lease, nor one that would not hear of the cluster's new signing keys."""
        if not task.cancelled() and task.exception() is not None:
            log.critical("a part of the operator failed, so all of it ends", exc_info=task.exception())
            self._exit_code = 1
            self._stopping.set()

    def _renewed(self, deadline: float) -> None:
        self._deadline = deadline
        if self._link is not None:
            self._link.lead(deadline)

    def _lost(self) -> None:
        """Nothing is decided any more. The agents stay: the API server being away is no reason to let them go."""
        if self._leading is not None:
            self._leading.cancel()
            self._leading = None

    def _another_leads(self, identity: str) -> None:
        self._deadline = 0.0
        if self._link is not None:
            self._link.lead(0.0)

    # Serving.

    async def _serve(self) -> None:
        await self._listener.primed.wait()
        self._lease.start()
        self._lease_started = True
        await self._identify()

    async def _identify(self) -> None:
        """Keeps the coordinator's identity: the CA as the Secret has it, a leaf that is fresh, and the coordinator that presents it."""
        while True:
            self._identity_wanted.clear()
            wait = RETRY_SECONDS
            try:
                authority = await (self._secret.fill() if self.leads else self._secret.read())
                if authority is not None:
                    await self._present(authority)
                    wait = IDENTITY_SECONDS
            except FAILURES as error:
                log.warning("the coordinator's CA cannot be had, trying again: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._identity_wanted.wait()

    async def _present(self, authority: Authority) -> None:
        files = self._leaf.renewed(authority, datetime.now(UTC))
        if files is not None and self._link is not None:
            self._link.rotate_tls(files)
        elif files is not None:
            await self._start_coordinator(
                CoordinatorLink(
                    listen=("::" if any(":" in ip for ip in self._config.pod_ips) else "0.0.0.0", self._config.coordinator_port),
                    tls=files,
                    on_change=self._queue.add,
                    on_keys_wanted=self._keys.wanted,
                    review=self._keys.review,
                )
            )
        self._authority = authority
        self._identified.set()
        if self.leads:
            await self._substrate.introduce(authority.bundle, self._config.manager)

    async def _start_coordinator(self, link: CoordinatorLink) -> None:
        await link.start()
        self._link = link
        self._reconciler = Reconciler(
            self._substrate,
            link,
            self._config.manager,
            clock.now,
            claimant_gone=self._claimants.gone,
            on_finished=lambda result: self._metrics.finished.labels(result).inc(),
        )
        link.lead(self._deadline)
        self._key_task = self._part(self._keys.run())
        self._key_task.add_done_callback(self._part_ended)

    # Leading.

    async def _lead(self) -> None:
        """Until cancelled: agents come here, and every job is looked at, whatever this process remembers from before."""
        await self._identified.wait()
        assert self._reconciler is not None and self._authority is not None
        async with asyncio.TaskGroup() as group:
            group.create_task(self._endpoint.run(), name="endpoint")
            group.create_task(self._diagnosis.run(), name="diagnosis")
            group.create_task(self._introduce(), name="introduce")
            self._reconciler.lead(continued=self._lease.term == self._term)
            self._term = self._lease.term
            self._listener.relist_soon()
            self._look_at_all()
            await self._queue.run(self._config.workers, self._look, self._metrics.queueing.observe)

    async def _introduce(self) -> None:
        """The workers of a job that was just taken over know the coordinator of the installation that is gone."""
        while True:
            assert self._authority is not None
            await self._substrate.introduce(self._authority.bundle, self._config.manager)
            await asyncio.sleep(INTRODUCE_SECONDS)

    async def _look(self, key: str) -> float | None:
        if not self.leads or self._reconciler is None:
            return NOT_LEADING_SECONDS
        with self._metrics.reconciles.time():
            again = await self._reconciler.reconcile(key)
        log.debug("looked at, again in %s s", again, extra={"job": key})
        if not self._cache.job_uid(key):
            self._queue.forget(key)
        return again


def _quietly(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: Any) -> None:
    """Hands a call of the lease's thread to the loop; after the loop's end nobody needs it."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *arguments)
