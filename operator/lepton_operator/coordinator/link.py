"""The operator's side of the coordinator: starts its process, tells it what to deliver, keeps what it reports.

Everything told is kept here and told again to a process that had to be restarted; a coordinator that dies costs the agents a reconnection
and the operator nothing. The listening socket is the operator's, so it outlives the process and its port never changes.
"""

import asyncio
import itertools
import json
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lepton_operator
import lepton_trainer
from lepton_operator import clock
from lepton_operator.coordinator import messages
from lepton_operator.coordinator.facts import JobFacts
from lepton_operator.coordinator.identity import Claims, Unidentified
from lepton_operator.coordinator.tls import TlsFiles
from lepton_operator.worker import Agent, GroupOrder
from lepton_trainer.protocol.names import TOKEN_AUDIENCE

log = logging.getLogger(__name__)

BACKLOG = 4096
START_SECONDS = 20.0
STOP_SECONDS = 2.0
RESTART_SECONDS = (0.1, 0.5, 2.0, 5.0)
"""Before the first, second, ... restart in a row; a process that lived for a minute starts the row anew."""
STEADY_SECONDS = 60.0
DROPS_KEPT = 10_000
LOOPBACK = ("127.", "::1", "localhost")


class CoordinatorLink:
    """One coordinator process. All methods are for the event loop that ran `start()`; none blocks.

    `on_change(job)` is called for what decisions depend on: joins, drops, states, first steps; not for progress. `on_keys_wanted(kid)` asks
    for `set_keys` (a token names an unknown key). `review`, where given, asks the API server about a token while no keys are set; it
    returns the claims or raises `Unidentified`.
    """

    def __init__(
        self,
        *,
        listen: tuple[str, int],
        tls: TlsFiles | None,
        on_change: Callable[[str], None],
        on_keys_wanted: Callable[[str], None] | None = None,
        review: Callable[[str], Awaitable[Claims]] | None = None,
        audience: str = TOKEN_AUDIENCE,
    ) -> None:
        if tls is None and not listen[0].startswith(LOOPBACK):
            raise ValueError(f"the coordinator serves plain TCP on loopback only, not on {listen[0]!r}")
        if tls is not None:
            tls.context()  # said now, by the exception, rather than by a process that cannot start
        self._listen, self._tls, self._audience = listen, tls, audience
        self._on_change, self._on_keys_wanted, self._review = on_change, on_keys_wanted, review
        self._listener: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._transport: asyncio.Transport | None = None
        self._ready: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._started_at = 0.0
        self._failures = 0
        self._groups: dict[str, GroupOrder] = {}
        self._facts: dict[str, JobFacts] = {}
        self._drops: deque[tuple[float, str, str]] = deque(maxlen=DROPS_KEPT)
        self._keys: messages.SetKeys | None = None
        self._deadline = 0.0
        self._queued = False
        self._settled = 0.0
        self.listening_since = 0.0
        """Mono: since when the present coordinator process serves agents."""

    # Life.

    async def start(self) -> None:
        """Returns when the process is ready. Raises OSError when the address cannot be had, RuntimeError when nothing comes up."""
        family = socket.AF_INET6 if ":" in self._listen[0] else socket.AF_INET
        listener = self._listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self._listen[0] == "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(self._listen)
        listener.listen(BACKLOG)
        self._ready = asyncio.get_running_loop().create_future()
        await self._spawn()
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._ready
        except TimeoutError:
            await self.stop()
            raise RuntimeError(f"the coordinator process did not come up within {START_SECONDS:.0f} s") from None

    async def stop(self) -> None:
        """Ends the process and closes the port."""
        self._stopping = True
        for task in list(self._tasks):
            task.cancel()
        if self._transport is not None:
            self._transport.close()
        if self._process is not None:
            await asyncio.to_thread(_reap, self._process)
        if self._listener is not None:
            self._listener.close()

    @property
    def port(self) -> int:
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    @property
    def pid(self) -> int:
        """Of the coordinator process; 0: it is being restarted."""
        return self._process.pid if self._process is not None else 0

    async def _spawn(self) -> None:
        assert self._listener is not None
        ours, theirs = socket.socketpair()
        fds = (self._listener.fileno(), theirs.fileno())
        roots = dict.fromkeys(str(Path(package.__file__ or "").parents[1]) for package in (lepton_operator, lepton_trainer))
        inherited = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([*roots, *([inherited] if inherited else ())])
        command = [sys.executable, "-P", "-m", "lepton_operator.coordinator.server", *map(str, fds)]
        try:
            self._process = await asyncio.to_thread(_run, command, fds, {**os.environ, "PYTHONPATH": path})
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._started_at = clock.mono()
        loop = asyncio.get_running_loop()
        ours.setblocking(False)
        await loop.create_unix_connection(lambda: _ProcessEnd(self), sock=ours)

    def _attached(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        tls = self._tls
        self._tell(
            messages.Configure(
                certificate=tls.certificate if tls else "",
                key=tls.key if tls else "",
                audience=self._audience,
                review=self._review is not None,
            )
        )
        if self._keys is not None:
            self._tell(self._keys)
        for order in self._groups.values():
            self._tell(messages.SetGroup(order))
        self._tell(messages.Lead(self._deadline))

    def _detached(self) -> None:
        self._transport = None
        if self._stopping:
            return
        process, self._process = self._process, None
        lived = clock.mono() - self._started_at
        self._failures = 0 if lived > STEADY_SECONDS else self._failures + 1
        self._settled = clock.mono()
        for facts in self._facts.values():
            facts.all_dropped(self._settled)
        self._start(self._restart(process))
        for job in list(self._facts):
            self._on_change(job)

    async def _restart(self, process: subprocess.Popen[bytes] | None) -> None:
        code = await asyncio.to_thread(_reap, process) if process is not None else None
        while True:
            pause = RESTART_SECONDS[min(max(self._failures, 1), len(RESTART_SECONDS)) - 1]
            log.error("the coordinator process ended (%s); agents train on; it is started again in %.1f s", _exit_words(code), pause)
            await asyncio.sleep(pause)
            try:
                await self._spawn()
                return
            except Exception as error:  # no process, no thread, no memory: as long as there is none, every agent is cut off
                self._failures += 1
                log.error("the coordinator process could not be started: %s", error)

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _tell(self, message: Any) -> None:
        if self._transport is not None:
            self._transport.write(messages.frame(message))

    # What to deliver.

    def set_group(self, order: GroupOrder) -> None:
        """The whole order for one job; costs a comparison when nothing changed."""
        if self._groups.get(order.job) != order:
            self._groups[order.job] = order
            self._tell(messages.SetGroup(order))

    def drop_group(self, job: str) -> None:
        """The job is gone: its agents are let go and forgotten."""
        self._facts.pop(job, None)
        if self._groups.pop(job, None) is not None:
            self._tell(messages.DropGroup(job))

    def forget(self, job: str, uid: str, boot: str) -> None:
        """Judged lost and replaced: no fact of it is kept, and should it still be connected it has to join anew."""
        facts = self._facts.get(job)
        if facts is not None and facts.forget((uid, boot)):
            self._tell(messages.Disconnect(job, uid, boot))

    def probe(self, job: str) -> None:
        """Asks all connected agents for their freshest progress; it shows in `agents()` as it arrives."""
        self._tell(messages.Probe(job))

    def lead(self, deadline_mono: float) -> None:
        """Orders may be published until then (CLOCK_BOOTTIME); 0: another leads, the agents are let go and joins refused."""
        self._deadline = deadline_mono
        self._tell(messages.Lead(deadline_mono))

    def set_keys(self, jwks: dict[str, Any], issuer: str) -> None:
        keys = messages.SetKeys(json.dumps(jwks), issuer)
        if keys != self._keys:
            self._keys = keys
            self._tell(keys)

    def rotate_tls(self, tls: TlsFiles) -> None:
        """A new leaf for new connections; those that stand are not disturbed. Raises OSError when the files cannot be used."""
        tls.context()
        self._tls = tls
        self._tell(messages.Configure(tls.certificate, tls.key, self._audience, self._review is not None))

    # What is known.

    def agents(self, job: str) -> list[Agent]:
        """Those connected, and those dropped and not forgotten; of two boots of one worker the later join comes last.

        A dropped one's `since` is never before the moment from which it could come back: nobody is lost for queueing."""
        facts, settled = self._facts.get(job), self.settled
        found = facts.agents() if facts is not None else []
        return [a if a.connected or a.since >= settled else replace(a, since=settled) for a in found]

    @property
    def connected(self) -> int:
        return sum(agent.connected for facts in self._facts.values() for agent in facts.agents())

    @property
    def settled(self) -> float:
        """Mono time since when agents can come back unhindered: the coordinator runs, no handshakes queue; *now* until it is so."""
        return clock.mono() if self._queued or self._transport is None else self._settled

    def drops_recent(self, seconds: float) -> list[tuple[str, str]]:
        """(job, worker uid) of each connection that dropped within the last `seconds`, oldest first."""
        since = clock.mono() - seconds
        recent = itertools.takewhile(lambda drop: drop[0] >= since, reversed(self._drops))  # each look at a job asks
        return [(job, uid) for _, job, uid in recent][::-1]

    # What the process says.

    def _hear(self, message: Any) -> None:
        if isinstance(message, messages.Progressed):
            facts = self._facts.get(message.job)
            if facts is not None and facts.progressed(message):
                self._on_change(message.job)
        elif isinstance(message, messages.Reported):
            facts = self._facts.get(message.job)
            if facts is not None and facts.reported(message):
                self._on_change(message.job)
        elif isinstance(message, messages.Joined):
            if message.job in self._groups:
                self._facts.setdefault(message.job, JobFacts()).joined(message)
                self._on_change(message.job)
        elif isinstance(message, messages.Dropped):
            self._drops.append((message.at, message.job, message.uid))
            facts = self._facts.get(message.job)
            if facts is not None and facts.dropped(message):
                self._on_change(message.job)
        elif isinstance(message, messages.Handshakes):
            self._queued, self._settled = message.queued, message.at
        elif isinstance(message, messages.Ready):
            self._settled = self.listening_since = clock.mono()
            if self._ready is not None and not self._ready.done():
                self._ready.set_result(None)
        elif isinstance(message, messages.Said):
            log.log(message.level, message.text, extra={"job": message.job} if message.job else None)
        elif isinstance(message, messages.KeysWanted):
            if self._on_keys_wanted is not None:
                self._on_keys_wanted(message.kid)
        elif isinstance(message, messages.Review):
            self._start(self._vouch(message))

    async def _vouch(self, message: messages.Review) -> None:
        assert self._review is not None
        try:
            claims = await self._review(message.token)
        except Unidentified as error:
            self._tell(messages.Reviewed(message.id, problem=str(error)))
        except Exception as error:  # whatever it is, the agent asks again and is told
            log.warning("a token could not be reviewed: %s", error)
            self._tell(messages.Reviewed(message.id, problem="the API server could not be asked; try again"))
        else:
            self._tell(messages.Reviewed(message.id, claims.namespace, claims.pod_uid))


class _ProcessEnd(asyncio.Protocol):
    def __init__(self, link: CoordinatorLink) -> None:
        self._link = link
        self._decoder = messages.operator_decoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._link._attached(cast(asyncio.Transport, transport))  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            try:
                self._link._hear(message)
            except Exception:  # a listener's mistake must not cut every agent off
                log.exception("the coordinator's word %s could not be taken", type(message).__name__)

    def connection_lost(self, error: Exception | None) -> None:
        self._link._detached()


def _run(command: list[str], fds: tuple[int, ...], env: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, pass_fds=fds, env=env, stdin=subprocess.DEVNULL)


def _reap(process: subprocess.Popen[bytes]) -> int:
    """Its exit status; a process that has lost its operator and does not end is killed."""
    try:
        return process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _exit_words(code: int | None) -> str:
    if code is None:
        return "it never ran"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
