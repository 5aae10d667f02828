"""`lepton run FILE --local`: the operator of one job on one machine, from the manifest to an exit code."""

import asyncio
import contextlib
import os
import secrets
import signal
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lepton_operator import clock, conditions
from lepton_operator.coordinator.link import CoordinatorLink
from lepton_operator.job import format_time
from lepton_operator.local import processes
from lepton_operator.local.follow import Follower
from lepton_operator.local.manifest import Manifest
from lepton_operator.local.store import RunDirectory
from lepton_operator.local.substrate import LocalSubstrate
from lepton_operator.local.table import Screen
from lepton_operator.local.validation import validate
from lepton_operator.metrics import Metrics
from lepton_operator.probes import ProbeServer
from lepton_operator.reconciler import Reconciler
from lepton_operator.status import Status, read_status
from lepton_operator.worker import Agent, GroupOrder
from lepton_operator.workqueue import WorkQueue

MANAGER = "local/lepton"
LOOPBACK = "127.0.0.1"
FOREVER = 1e12
"""Seconds: on one machine nobody else leads."""
WATCH_SECONDS = 0.2
"""How soon a change of the job's file (`lepton scale`) is seen."""
END_SECONDS = 8.0
"""After Ctrl-C, the agents' time to end their ranks in good order."""


@dataclass(frozen=True, slots=True)
class Options:
    metrics_port: int = 0
    follow_logs: bool = False
    fresh: bool = False
    warm: bool = True


class _LocalCoordinator:
    """The link with the job's secret in every order: local agents prove themselves by it."""

    def __init__(self, link: CoordinatorLink, token: str) -> None:
        self._link, self._token = link, token

    def set_group(self, order: GroupOrder) -> None:
        self._link.set_group(replace(order, token=self._token))

    def drop_group(self, job: str) -> None:
        self._link.drop_group(job)

    def agents(self, job: str) -> list[Agent]:
        return self._link.agents(job)

    def forget(self, job: str, uid: str, boot: str) -> None:
        self._link.forget(job, uid, boot)

    def probe(self, job: str) -> None:
        self._link.probe(job)

    def drops_recent(self, seconds: float) -> list[tuple[str, str]]:
        return self._link.drops_recent(seconds)


def prepare(run: RunDirectory, manifest: Manifest, fresh: bool) -> bool:
    """Puts the job into its run directory: a new one, or a change of the one that is there. True: an unfinished job goes on.

    Raises `ManifestError` where the change is one that the API server would refuse.
    """
    run.make()
    if not run.token_file.exists():
        run.token_file.touch(mode=0o600)
        run.token_file.write_text(secrets.token_urlsafe(32))
    old = run.read()
    if old is not None and not fresh and not conditions.is_true(read_status(old["status"]).conditions, conditions.FINISHED):
        wanted = validate(manifest.job, old)

        def change(body: dict[str, Any]) -> None:
            if body["spec"] != wanted["spec"]:
                body["spec"] = wanted["spec"]
                body["metadata"]["generation"] += 1

        run.update(change)
        return True
    for name in run.records():
        run.drop_record(name)
    if fresh:
        processes.remove_tree(run.claims)
        run.claims.mkdir()
    metadata = {
        **manifest.job["metadata"],
        "uid": str(uuid.uuid4()),
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": format_time(time.time()),
    }
    run.events_file.write_text("")
    run.create({**manifest.job, "metadata": metadata, "status": {}})
    return False


async def run_job(run: RunDirectory, manifest: Manifest, options: Options) -> int:
    """Runs until the job is Finished (0 when Complete, else 1) or is interrupted (130). Raises `ManifestError`, `OSError`."""
    processes.become_subreaper()
    going_on = prepare(run, manifest, options.fresh)
    loop = asyncio.get_running_loop()
    key = "/".join((manifest.job["metadata"]["namespace"], manifest.job["metadata"]["name"]))
    queue = WorkQueue()
    screen = Screen(run, key, options.follow_logs)
    substrate = LocalSubstrate(run, manifest, lambda: queue.add(key), screen.event)
    link = CoordinatorLink(listen=(LOOPBACK, 0), tls=None, on_change=queue.add)
    reconciler = Reconciler(substrate, _LocalCoordinator(link, run.token_file.read_text()), MANAGER, clock.now)
    metrics = Metrics()
    metrics.watch(reconciler.summaries, lambda: True, lambda: link.connected, lambda: len(queue), dict, False)
    probes = ProbeServer(metrics.registry, lambda: "")
    await link.start()
    try:
        port = await probes.start(options.metrics_port, LOOPBACK)
        link.lead(clock.mono() + FOREVER)
        run.write_coordinator(f"tcp://{LOOPBACK}:{link.port}")
        screen.begin(port, substrate.find() if going_on else 0)
        interrupted = _on_signals(loop)
        queue.add(key)
        work = [
            loop.create_task(queue.run(1, reconciler.reconcile)),
            loop.create_task(_watch_file(run, lambda: queue.add(key))),
            loop.create_task(_reap(substrate, lambda: link.pid)),
        ]
        try:
            status = await _until_finished(run, screen, lambda: link.agents(key), substrate, interrupted, work)
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
        if status is None:
            screen.say("interrupted: ending the workers")
            await substrate.end_all(END_SECONDS)
            screen.end(None)
            return 130
        screen.end(status)
        return 0 if conditions.is_true(status.conditions, conditions.COMPLETE) else 1
    finally:
        await probes.stop()
        await link.stop()


def _on_signals(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """Set by the first SIGINT, SIGTERM or SIGHUP."""
    interrupted = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupted.set)
    return interrupted


async def _until_finished(
    run: RunDirectory,
    screen: Screen,
    agents: Callable[[], list[Agent]],
    substrate: LocalSubstrate,
    interrupted: asyncio.Event,
    work: list[asyncio.Task[None]],
) -> Status | None:
    """The final status, or None when interrupted."""
    follower = Follower(run)
    while not interrupted.is_set():
        body = run.read()
        if body is None:
            return None
        status = read_status(body["status"])
        screen.show(status, agents(), follower.lines() if screen.follows else ())
        if conditions.is_true(status.conditions, conditions.FINISHED):
            return status
        for task in work:
            if task.done():
                task.result()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(screen.period):
                await interrupted.wait()
    return None


async def _watch_file(run: RunDirectory, on_change: Callable[[], None]) -> None:
    seen = 0
    while True:
        with contextlib.suppress(FileNotFoundError):
            now = run.job_file.stat().st_mtime_ns
            if now != seen:
                seen = now
                on_change()
        await asyncio.sleep(WATCH_SECONDS)


async def _reap(substrate: LocalSubstrate, coordinator_pid: Callable[[], int]) -> None:
    while True:
        await asyncio.sleep(1.0)
        processes.reap_orphans(substrate.known_children() | {coordinator_pid()})


def run_locally(run: RunDirectory, manifest: Manifest, options: Options) -> int:
    """The whole of it, for the command line."""
    run.make()
    place = run.claim()
    if place is None:
        print(f"lepton: this job is being run already; its directory is {run.path}", file=sys.stderr)
        return 2
    if not options.warm:
        os.environ["LEPTON_WARM_START"] = "0"
    try:
        return asyncio.run(run_job(run, manifest, options))
    finally:
        os.close(place)
