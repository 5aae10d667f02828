"""The agent's state machine: follows the coordinator's orders, watches its ranks, tells what is. PID 1 of a worker pod.

Level-triggered like its protocol: an order says what should be; what arrives twice or late changes nothing. A higher generation ends the
older one at once; a lower one is refused. Without a coordinator training goes on.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Coroutine, Dict, List, Mapping, Optional

from lepton_trainer.agent import failures, processes
from lepton_trainer.agent import group as g
from lepton_trainer.agent.clearing import Clearing
from lepton_trainer.agent.group import Group
from lepton_trainer.agent.link import Final, Link
from lepton_trainer.agent.logs import Output
from lepton_trainer.agent.metrics import MetricsServer
from lepton_trainer.agent.settings import Settings
from lepton_trainer.agent.starting import Starter
from lepton_trainer.agent.stopping import Stopping
from lepton_trainer.agent.telemetry import LogMatcher, Meter, exposition
from lepton_trainer.agent.warm.client import Cold, WarmParent
from lepton_trainer.protocol import messages as m
from lepton_trainer.protocol.result import Result, dump

ORPHANED_SECONDS = 60.0
"""With its work done and no coordinator to say so, an agent ends after so long."""
LOST_CAUSE_SECONDS = 600.0
"""With its ranks failed, or none started, and no coordinator for so long, it ends too."""
DEADLINE_MARGIN_SECONDS = 2.0
ALONE_SECONDS = 2.0
"""An agent that leaves waits so long for a coordinator that went away to agree on a stop; then its ranks get SIGTERM."""
EXIT_LEFT = 143
FORWARDED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def first_steps_pause(elapsed: float) -> float:
    """Seconds until the next look for a first step, `elapsed` seconds after the start: 0.05 at first, and ever fewer looks at a script
    that takes long to step or reports nothing."""
    return max(0.05, elapsed / 60.0)


class Supervisor:
    def __init__(self, settings: Settings, env: Mapping[str, str], loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._loop = loop
        self._base = g.base_environment(env)
        self._output = Output(loop)
        self._oom = failures.OomCounter()
        self._meter = Meter()
        self._link = Link(settings, self._join, self._receive, self._say)
        self._metrics = MetricsServer(lambda: exposition(settings, self._meter, self._up(), self._starter.counts))
        self._metrics_port = 0
        self._starter = Starter(settings, self._base, self._output, self._on_ended, self._say)
        self._warm = self._starter.warm
        self._clearing = Clearing(self._warm)
        self._stopping = Stopping(self._tell, self._spawn)
        self._seq = 0
        self._phase = m.IDLE
        self._generation = 0
        self._highest = 0
        self._order = m.Order(seq=0)  # the newest
        self._told = self._order  # the one of `_generation`
        self._group: Optional[Group] = None
        self._work: "Optional[asyncio.Task[None]]" = None
        self._store_port = 0
        self._refusal = ""
        self._leaving = ""
        self._left: Optional[float] = None  # monotonic, when it was told to
        self._timings: Dict[str, float] = {"agent_start": time.time()}
        self._verdict: Optional[str] = None
        self._reason = ""
        self._done: "asyncio.Future[int]" = loop.create_future()
        self._tasks: List["asyncio.Task[Any]"] = []

    # ---- life ----

    async def run(self) -> int:
        """Until the work is over; returns the exit code of the agent."""
        processes.become_subreaper()
        self._loop.add_signal_handler(signal.SIGCHLD, self._on_child)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._on_leave, signal.Signals(number).name)
        for number in FORWARDED:
            self._loop.add_signal_handler(number, self._forward, number)
        if self._warm is not None:
            self._warm.start()
            self._spawn(self._tell_when_warm(self._warm))
        await self._serve_metrics()
        self._spawn(self._keep_link())
        self._spawn(self._tell_telemetry())
        self._spawn(self._end_when_orphaned())
        code = await self._done
        self._kill()
        await self._emptied(DEADLINE_MARGIN_SECONDS)  # what does not die must not cost the result
        if self._settings.termination_log:
            self._write_result()
        self._tell()
        await self._link.flush(0.5)
        self._metrics.close()
        for task in self._tasks:
            task.cancel()
        if self._warm is not None:
            self._warm.close()
        processes.send(processes.descendants([os.getpid()]), signal.SIGKILL)
        if self._group is not None:
            self._group.close()
        if self._settings.own_run_dir:
            shutil.rmtree(self._settings.run_dir, ignore_errors=True)
        self._output.drain()
        return code

    async def _tell_when_warm(self, warm: WarmParent) -> None:
        """A group grows by this worker once it would not have to wait for imports."""
        with contextlib.suppress(Cold):
            await warm.wait_ready()
        self._tell()

    def _spawn(self, work: "Coroutine[Any, Any, None]") -> "asyncio.Task[None]":
        task = self._loop.create_task(work)
        self._tasks = [other for other in self._tasks if not other.done()] + [task]
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: "asyncio.Task[None]") -> None:
        """A fault of our own ends the agent with its cause, and the pod is replaced: better than an agent that has stopped listening."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._end(1, f"{type(error).__name__}: {error}")

    def _end(self, code: int, reason: str) -> None:
        if not self._done.done():
            self._reason = reason
            self._say(f"ending: {reason}")
            self._done.set_result(code)

    def _say(self, text: str) -> None:
        self._output.write(f"[lepton] {text}\n")

    async def _serve_metrics(self) -> None:
        try:
            self._metrics_port = await self._metrics.start(self._settings)
        except OSError as error:
            self._say(f"no metrics: port {self._settings.metrics_port} cannot be used ({error.strerror})")

    def _write_result(self) -> None:
        exits = tuple(self._group.exits) if self._group is not None else ()
        result = Result(self._verdict or "", self._generation, self._reason, exits, self._meter.progress())
        try:
            Path(self._settings.termination_log).write_text(dump(result), "utf-8", "replace")
        except OSError as error:
            self._say(f"no result: {self._settings.termination_log} cannot be written ({error.strerror})")

    async def _end_when_orphaned(self) -> None:
        since = time.monotonic()
        while True:
            await asyncio.sleep(1.0)
            if self._phase in (m.RUNNING, m.PREPARED):
                since = time.monotonic()
            alone = min(self._link.alone, time.monotonic() - since)
            if self._phase == m.SUCCEEDED and alone > ORPHANED_SECONDS:
                self._verdict = m.COMPLETE
                self._end(0, "the work is done and no coordinator answers")
            elif alone > LOST_CAUSE_SECONDS:
                self._end(1, f"no coordinator for {LOST_CAUSE_SECONDS:g} s and nothing to run")

    # ---- talking ----

    async def _keep_link(self) -> None:
        try:
            await self._link.run()
        except Final as final:
            self._verdict = m.REMOVED if final.refused.code in (m.SUPERSEDED, m.UNKNOWN_WORKER) else None
            self._end(1, str(final))

    async def _tell_telemetry(self) -> None:
        while True:
            await asyncio.sleep(self._link.telemetry_seconds)
            self._stopping.look()
            self._link.send(m.Telemetry(self._meter.progress()))

    async def _tell_first_steps(self, group: Group) -> None:
        """What decisions wait for is told at once: that the ranks step, and that all of them can stop together."""
        told, began = None, time.monotonic()
        while group is self._group and group.living:
            self._stopping.look()
            progress = self._meter.progress()
            if progress.first_step is not None and progress.step != told:
                self._link.send(m.Telemetry(progress))
                if told is not None or self._stopping.could_stop:
                    return
                told = progress.step
            await asyncio.sleep(first_steps_pause(time.monotonic() - began))

    def _join(self, token: str) -> m.Join:
        s = self._settings
        return m.Join(
            version=m.VERSION,
            job=s.job,
            job_uid=s.job_uid,
            worker=s.worker,
            worker_uid=s.worker_uid,
            boot=s.boot,
            token=token,
            host=s.host,
            procs=s.procs,
            state=self._state(),
            progress=self._meter.progress(),
            metrics_port=self._metrics_port,
        )

    def _state(self) -> m.State:
        self._seq += 1
        if self._warm is not None and self._warm.ready_time:
            self._timings["warm_ready"] = self._warm.ready_time
        return m.State(
            seq=self._seq,
            phase=self._phase,
            generation=self._generation,
            highest=self._highest,
            group_rank=self._told.group_rank,
            group_size=self._told.group_size,
            digest=self._told.digest,
            store_port=self._store_port,
            exits=tuple(self._group.exits[:8]) if self._group is not None else (),
            leaving=self._leaving,
            can_stop=self._stopping.could_stop,
            warming=self._warm is not None and self._warm.warming,
            stop=self._stopping.reply,
            cold_start=self._starter.cold_start,
            refusal=self._refusal,
            round=self._told.round,
            timings=dict(self._timings),
        )

    def _tell(self) -> None:
        if self._phase in (m.FAILED, m.SUCCEEDED, m.STOPPED):
            self._link.send(m.Telemetry(self._meter.progress()))  # the last word of ranks that say no more
        self._link.send(self._state())

    def _receive(self, message: Any) -> None:
        if isinstance(message, m.Ping):
            self._link.send(m.Pong(message.id, self._meter.progress()))
        elif self._verdict is None and not self._done.done():
            self._follow(message)

    # ---- following orders ----

    def _follow(self, order: m.Order) -> None:
        if order.shutdown:
            self._verdict = order.shutdown
            self._replace_work(self._shut_down(order.grace_seconds))
        elif order.generation > max(self._generation, self._highest):
            self._highest = order.generation
            if self._leaving:  # the order was on its way when it was told to
                self._kill()
                self._refuse(f"this worker is leaving ({self._leaving}): generation {order.generation} goes on without it")
                return
            self._timings.update(order=time.time())
            self._order = order  # at once: the start may come in the same read, before the task below has run
            self._kill()
            self._replace_work(self._prepare(order))
        elif order.generation == self._order.generation and order.generation == self._highest and order.generation:
            self._order = order
            if self._phase == m.PREPARED and order.master_port and (self._work is None or self._work.done()):
                self._replace_work(self._start())
            self._stopping.follow(order.stop)
        elif order.generation and order.generation < self._highest:
            self._refuse(f"generation {order.generation} is older than {self._highest}")

    def _refuse(self, refusal: str) -> None:
        if refusal != self._refusal:
            self._refusal = refusal
            self._tell()

    def _replace_work(self, work: "Coroutine[Any, Any, None]") -> None:
        if self._work is not None:
            self._work.cancel()
        self._work = self._spawn(work)

    async def _prepare(self, order: m.Order) -> None:
        """The older generation's processes are gone, the store is open where it is ours to open: PREPARED. Then on to the start, if due."""
        self._refusal = ""
        await self._emptied()
        self._timings["killed"] = time.time()
        if self._group is not None:
            self._link.send(m.Telemetry(self._meter.progress()))  # how far the older one came, before anything of the new one
            self._meter.end()
            self._group.close()
            self._group = None
        if order.round != self._told.round:
            self._meter.new_round()
        self._stopping.begin(None)
        self._store_port = 0  # the older one's is never told with a newer state while ours opens
        no_store = ""
        try:
            self._store_port = await self._starter.open_store() if order.group_rank == 0 else 0
        except Cold as cold:
            no_store = str(cold)
        self._generation, self._told = order.generation, order
        if no_store:  # the ranks of all workers would wait for it in vain
            self._group = Group(order, self._settings, self._starter.uses_agent_store, exits=[g.no_store(order.rank_offset, no_store)])
            self._fail()
            return
        self._phase = m.PREPARED
        self._timings["prepared"] = time.time()
        self._tell()
        if self._order.master_port:
            await self._start()

    async def _start(self) -> None:
        """PREPARED -> RUNNING, or FAILED when the command cannot be executed."""
        group = Group(self._order, self._settings, self._starter.uses_agent_store)
        self._group = group
        self._stopping.begin(group)
        try:
            group.prepare(self._base)
        except OSError as error:
            group.exits.append(g.cannot_write(self._settings, self._order.rank_offset, error))
            self._fail()
            return
        matcher = LogMatcher(self._settings.log_patterns, self._say) if self._settings.log_patterns else None
        self._meter.begin(self._order.generation, [rank.slot for rank in group.ranks], matcher)
        self._timings["forking"] = time.time()
        await self._starter.start(group, matcher)
        if group.exits:
            self._fail()
            return
        self._timings["forked"] = time.time()
        if self._phase == m.PREPARED:  # no rank has ended yet
            self._phase = m.RUNNING
            self._tell()
        self._stopping.follow(self._order.stop)
        self._spawn(self._tell_first_steps(group))

    async def _shut_down(self, grace: float) -> None:
        grace = min(grace, self._patience())  # whoever says so may delete the pod at the same moment
        if self._group is not None and self._group.living and grace > 0:
            self._group.terminated = True
            self._group.signal(signal.SIGTERM)
            await self._clearing.ended(self._group, grace)
        self._end(0 if self._verdict == m.COMPLETE else 1, f"the coordinator says {self._verdict}")

    # ---- leaving ----

    def _forward(self, number: int) -> None:
        if self._group is not None:
            self._group.signal(number)

    def _on_leave(self, why: str) -> None:
        if self._leaving:
            if why == "SIGINT":  # the second one: the user does not want to wait
                self._end(EXIT_LEFT, "interrupted twice")
            return
        self._leaving = why
        self._left = time.monotonic()
        self._tell()
        self._spawn(self._leave())

    def _patience(self) -> float:
        """Seconds that ranks can still be given to end by themselves: the pod's grace period less a margin, from the SIGTERM on."""
        grace = self._settings.grace_seconds
        seconds = max(grace - DEADLINE_MARGIN_SECONDS, grace / 2)
        return seconds if self._left is None else self._left + seconds - time.monotonic()

    async def _leave(self) -> None:
        """Ends within the grace period: ranks stop together where the script can, else SIGTERM; SIGKILL at our own deadline."""
        group = self._group
        if group is not None and group.living:
            if group.can_stop and self._link.connected:
                await self._clearing.ended(group, self._patience(), lambda: not group.stop_committed and self._link.alone > ALONE_SECONDS)
            if group.living:
                group.terminated = True
                group.signal(signal.SIGTERM)
                await self._clearing.ended(group, self._patience())
        await self._link.flush(0.5)
        await asyncio.sleep(0.2)  # a verdict may be on its way
        if self._work is None or self._work.done() or self._verdict is None:
            self._end(EXIT_LEFT, f"{self._leaving}: leaving")

    # ---- processes ----

    def _up(self) -> List[int]:
        return [rank.rank for rank in self._group.living] if self._group is not None else []

    def _on_child(self) -> None:
        ended = processes.reap()
        if self._warm is not None:
            ended = [entry for entry in ended if not self._warm.is_end(entry)]
        self._on_ended(ended)

    def _on_ended(self, ended: "List[processes.Ended]") -> None:
        """Some processes have ended; those that are no ranks were orphans, and are reaped by now."""
        group = self._group
        if group is not None and group.pids.intersection(entry.pid for entry in ended):
            self._judge(group, group.finish_all(ended, self._oom.risen))
        self._clearing.reaped()

    def _judge(self, group: Group, failed: "List[m.ProcessExit]") -> None:
        if failed and group.terminated:
            self._phase = m.STOPPED
        elif failed:
            group.exits.extend(failed)
            self._fail()
            return
        if group.all_ended and self._phase in (m.RUNNING, m.PREPARED, m.STOPPED) and self._generation == group.order.generation:
            self._phase = m.STOPPED if group.stopped or self._phase == m.STOPPED else m.SUCCEEDED
            self._timings["ended"] = time.time()
            self._clearing.kill_leftovers(keep_store=True)  # other workers' ranks may still need it
            self._tell()

    def _fail(self) -> None:
        """The first failure of this generation here: the other ranks go at once, the coordinator hears of it at once."""
        self._kill()
        if self._phase != m.FAILED:
            self._phase = m.FAILED
            self._timings["ended"] = time.time()
        self._tell()

    def _kill(self) -> None:
        self._clearing.kill(self._group)

    async def _emptied(self, seconds: float = float("inf")) -> None:
        await self._clearing.emptied(self._group, self._name_undying, seconds)

    def _name_undying(self) -> None:
        self._refusal = "processes of the older generation do not die from SIGKILL: a driver or file system on this node hangs"
        self._say(self._refusal)
        self._tell()


def run(settings: Settings, env: Mapping[str, str]) -> int:
    """Runs an agent to its end; returns its exit code."""

    async def main() -> int:
        return await Supervisor(settings, env, asyncio.get_running_loop()).run()

    return asyncio.run(main())
