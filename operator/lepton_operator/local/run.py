"""`lepton run FILE --local`: the operator of one job on one machine, from the manifest to an exit code."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lepton_operator import clock, conditions
from lepton_operator.coordinator.link import CoordinatorLink
from lepton_operator.decision import rounds
from lepton_operator.local import processes
from lepton_operator.local.manifest import Manifest
from lepton_operator.local.prepare import prepare
from lepton_operator.local.store import RunDirectory
from lepton_operator.local.substrate import LocalSubstrate
from lepton_operator.local.table import Screen
from lepton_operator.metrics import Metrics
from lepton_operator.probes import ProbeServer
from lepton_operator.reconciler import Reconciler
from lepton_operator.status import Status, read_status
from lepton_operator.worker import Agent, GroupOrder
from lepton_operator.workqueue import WorkQueue
from lepton_trainer.protocol import messages

MANAGER = "local/lepton"
LOOPBACK = "127.0.0.1"
FOREVER = 1e12
"""Seconds: on one machine nobody else leads."""
WATCH_SECONDS = 0.2
"""How soon a change of the job's file (`lepton scale`) is seen."""
SHOW_SECONDS = 0.1
END_SECONDS = 8.0
"""After Ctrl-C, the time of the ranks to stop together where the script can, and then of the agents to end them."""
INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Options:
    metrics_port: int = 0
    follow_logs: bool = False
    fresh: bool = False


class LocalCoordinator:
    """The link with the job's secret in every order: local agents prove themselves by it."""

    def __init__(self, link: CoordinatorLink, token: str) -> None:
        self._link, self._token = link, token
        self._order: GroupOrder | None = None

    def set_group(self, order: GroupOrder) -> None:
        self._order = replace(order, token=self._token)
        self._link.set_group(self._order)

    def stop_together(self) -> None:
        """Asks the running generation to stop after the same step on every rank."""
        if self._order is not None:
            self.set_group(replace(self._order, stop_requested=True))

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

    @property
    def listening_since(self) -> float:
        return self._link.listening_since

    @property
    def settled(self) -> float:
        return self._link.settled


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP: the first asks for an end in good order, a second one for an end at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._came)

    def _came(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


class LocalRun:
    """Everything that serves one job, wired."""

    def __init__(self, run: RunDirectory, manifest: Manifest, options: Options) -> None:
        metadata = manifest.job["metadata"]
        self.key = f"{metadata['namespace']}/{metadata['name']}"
        self._run, self._manifest, self._options = run, manifest, options
        self._queue = WorkQueue()
        self._screen = Screen(run, self.key, options.follow_logs)
        self._substrate = LocalSubstrate(run, manifest, lambda: self._queue.add(self.key), self._screen.event)
        self._link = CoordinatorLink(listen=(LOOPBACK, 0), tls=None, on_change=self._queue.add)
        self._coordinator = LocalCoordinator(self._link, run.token_file.read_text())
        self._metrics = Metrics()
        self._probes = ProbeServer(self._metrics.registry, lambda: "")
        self._orphans = processes.Orphans()

    async def run(self) -> int:
        """Until the job is Finished (0 when Complete, else 1) or is interrupted (130). Raises `ManifestError`, `OSError`."""
        interrupts = Interrupts(asyncio.get_running_loop())
        processes.become_subreaper()
        prepared = prepare(self._run, self._manifest, self._options.fresh)
        reconciler = Reconciler(
            self._substrate,
            self._coordinator,
            MANAGER,
            clock.now,
            on_finished=lambda result: self._metrics.finished.labels(result).inc(),
        )
        self._metrics.watch(
            reconciler.summaries,
            leader=lambda: True,
            agents=lambda: self._link.connected,
            queued=lambda: len(self._queue),
            cached=dict,
            node_evidence=False,
        )
        try:
            port = await self._probes.start(self._options.metrics_port, LOOPBACK)
            try:
                await self._link.start()
            except RuntimeError as error:
                raise OSError(str(error)) from None
            self._link.lead(clock.mono() + FOREVER)
            self._run.write_addresses(f"tcp://{LOOPBACK}:{self._link.port}", f"http://{LOOPBACK}:{port}/metrics")
            self._screen.begin(port, self._substrate.find() if prepared.goes_on else 0, prepared.checkpoints)
            self._queue.add(self.key)
            status = await self._serve(reconciler, interrupts)
            if status is None:
                self._screen.say("interrupted: ending the workers in good order; Ctrl-C again ends them at once")
                await self._end_workers(interrupts)
                return INTERRUPTED
            complete = conditions.is_true(status.conditions, conditions.COMPLETE)
            if complete and (how := self._how_to_serve(status)):
                self._screen.say(how)
            return 0 if complete else 1
        finally:
            await self._probes.stop()
            await self._link.stop()
            self._screen.end()

    def _how_to_serve(self, status: Status) -> str:
        """What this machine does not do by itself; empty where the job asks for none of it."""
        job = self._substrate.job(self.key)
        if job is None or job.serve is None:
            return ""
        number = status.evaluation.best.round if status.evaluation is not None and status.evaluation.best is not None else 0
        directory = rounds.model_directory(job, self._substrate.checkpoints(job), number)
        return f"nothing is served on this machine by itself; to serve the model: lepton serve {directory} --port {job.serve.port}"

    def agents(self) -> list[Agent]:
        """What is known of the job's agents now."""
        return self._link.agents(self.key)

    async def _serve(self, reconciler: Reconciler, interrupts: Interrupts) -> Status | None:
        """The final status, or None when interrupted."""

        async def look(key: str) -> float | None:
            with self._metrics.reconciles.time():
                return await reconciler.reconcile(key)

        loop = asyncio.get_running_loop()
        work: list[asyncio.Task[Any]] = [
            loop.create_task(self._queue.run(1, look, self._metrics.queueing.observe)),
            loop.create_task(self._watch_file(lambda: self._queue.add(self.key))),
            loop.create_task(self._reap()),
        ]
        finished = loop.create_task(self._until_finished())
        interrupted = loop.create_task(interrupts.first.wait())
        try:
            await asyncio.wait([finished, interrupted, *work], return_when=asyncio.FIRST_COMPLETED)
            for task in work:
                if task.done():
                    task.result()
            return finished.result() if finished.done() else None
        finally:
            for task in (*work, finished, interrupted):
                task.cancel()
            await asyncio.gather(*work, finished, interrupted, return_exceptions=True)

    async def _until_finished(self) -> Status:
        while True:
            body = self._run.read()
            status = read_status(body["status"]) if body is not None else Status()
            self._screen.show(status, self.agents())
            if conditions.is_true(status.conditions, conditions.FINISHED):
                return status
            await asyncio.sleep(SHOW_SECONDS)

    async def _watch_file(self, on_change: Callable[[], None]) -> None:
        seen = 0
        while True:
            with contextlib.suppress(FileNotFoundError):
                now = self._run.job_file.stat().st_mtime_ns
                if now != seen:
                    seen = now
                    on_change()
            await asyncio.sleep(WATCH_SECONDS)

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._orphans.look(self._substrate.known_children() | {self._link.pid})

    async def _end_workers(self, interrupts: Interrupts) -> None:
        """Ranks that can stop together do; then agents are asked to leave; what is left is killed. Nothing remains of any worker."""
        hurry = asyncio.create_task(interrupts.second.wait())
        gentle = asyncio.create_task(self._end_gently())
        await asyncio.wait([hurry, gentle], return_when=asyncio.FIRST_COMPLETED)
        for task in (hurry, gentle):
            task.cancel()
        await asyncio.gather(hurry, gentle, return_exceptions=True)
        await self._substrate.kill_all()
        self._run.update(_note_interruption)

    async def _end_gently(self) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + END_SECONDS
        running = [agent for agent in self.agents() if agent.connected and agent.state.phase == messages.RUNNING]
        if running and all(agent.state.can_stop for agent in running):
            self._coordinator.stop_together()
            while any(a.connected and a.state.phase == messages.RUNNING for a in self.agents()):
                if loop.time() > deadline:
                    break
                await asyncio.sleep(0.02)
        self._substrate.signal_all(signal.SIGTERM)
        await self._substrate.all_ended(max(2.0, deadline - loop.time()))


def _note_interruption(body: dict[str, Any]) -> None:
    status = body["status"]
    status["state"] = "Pending"
    status["message"] = "interrupted; the same `lepton run` goes on from the last checkpoint"
    if "workers" in status:
        status["workers"] |= {"ready": 0, "active": 0, "summary": f"0/{status['workers'].get('desired', 0)}"}


def run_locally(run: RunDirectory, manifest: Manifest, options: Options) -> int:
    """The whole of it, for the command line. Raises `ManifestError`, `OSError`."""
    run.make()
    place = run.claim()
    if place is None:
        print(f"lepton: this job is being run already; its directory is {run.path}", file=sys.stderr)
        return 2
    try:
        return asyncio.run(LocalRun(run, manifest, options).run())
    finally:
        os.close(place)
