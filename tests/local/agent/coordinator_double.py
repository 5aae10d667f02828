"""A coordinator that does what a test says, and an agent as a real process to talk to it: the protocol's other end, nothing decided."""

import asyncio
import json
import os
import re
import signal
import ssl
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lepton_trainer.protocol import messages as m
from lepton_trainer.protocol.frames import Decoder, encode

SOURCE = Path(__file__).resolve().parents[3] / "trainer_image"
MARKER = "LEPTON_TEST_MARKER"


@dataclass
class Peer:
    """One agent as the coordinator sees it."""

    join: m.Join
    writer: asyncio.StreamWriter
    state: m.State
    progress: m.Progress = field(default_factory=m.Progress)
    arrived: float = 0.0  # monotonic, of the last State
    pongs: list[m.Pong] = field(default_factory=list)
    connections: int = 1
    gone: bool = False


class Coordinator:
    """Accepts agents on a loopback port; `peers` by worker index."""

    def __init__(self) -> None:
        self.peers: dict[int, Peer] = {}
        self.joins: list[m.Join] = []
        self.states: list[tuple[float, int, m.State]] = []
        self.welcome = m.Welcome(m.VERSION, telemetry_seconds=0.1)
        self.refuse: m.Refused | None = None
        self.greet: Callable[[m.Join], None] = lambda join: None
        self.on_state: Callable[[int, m.State], None] = lambda worker, state: None
        self.port = 0
        self.beating = True
        self.tls: ssl.SSLContext | None = None
        self._beats: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._seq = 0
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self._beats = asyncio.create_task(self._beat())

    async def _beat(self) -> None:
        while self.beating:
            await asyncio.sleep(1)
            for peer in self.peers.values():
                if not peer.gone:
                    peer.writer.write(encode(m.Beat()))

    async def stop(self) -> None:
        assert self._server is not None and self._beats is not None
        self._beats.cancel()
        self._server.close()
        for peer in self.peers.values():
            peer.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder, worker = Decoder(), -1
        try:
            while data := await reader.read(65536):
                for message in decoder.feed(data):
                    if isinstance(message, m.Join):
                        worker = message.worker
                        self.joins.append(message)
                        if self.refuse is not None:
                            writer.write(encode(self.refuse))
                            continue
                        before = self.peers.get(worker)
                        self.peers[worker] = Peer(message, writer, message.state, connections=before.connections + 1 if before else 1)
                        writer.write(encode(self.welcome))
                        self.greet(message)
                    self._take(worker, message)
                async with self._changed:
                    self._changed.notify_all()
        except OSError:
            pass
        if worker in self.peers and self.peers[worker].writer is writer:
            self.peers[worker].gone = True
        writer.close()
        async with self._changed:
            self._changed.notify_all()

    def _take(self, worker: int, message: Any) -> None:
        peer = self.peers.get(worker)
        if peer is None:
            return
        if isinstance(message, m.State):
            peer.state, peer.arrived = message, time.monotonic()
            self.states.append((peer.arrived, worker, message))
            self.on_state(worker, message)
        elif isinstance(message, m.Telemetry):
            peer.progress = message.progress
        elif isinstance(message, m.Pong):
            peer.pongs.append(message)
            peer.progress = message.progress

    async def until(self, condition: Callable[[], Any], seconds: float = 20.0) -> Any:
        """Waits for what the messages make true; the assertion tells where the agents stood."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            rest = deadline - time.monotonic()
            assert rest > 0, f"not within {seconds} s; states: {[(w, p.state, p.progress) for w, p in self.peers.items()]}"
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait(), min(rest, 0.2))
                except TimeoutError:
                    continue
        return found

    async def until_phase(self, phase: str, *workers: int, generation: int | None = None, seconds: float = 20.0) -> None:
        await self.until(
            lambda: all(
                w in self.peers and self.peers[w].state.phase == phase and generation in (None, self.peers[w].state.generation)
                for w in workers
            ),
            seconds,
        )

    def order(self, worker: int, **fields: Any) -> None:
        self._seq += 1
        self.peers[worker].writer.write(encode(m.Order(seq=self._seq, **fields)))

    def send(self, worker: int, message: Any) -> None:
        self.peers[worker].writer.write(encode(message))

    def members(self, generation: int, workers: list[int], restarts: int = 0, **more: Any) -> dict[int, dict[str, Any]]:
        """The fields of the orders that make `workers` a generation."""
        offset, orders = 0, {}
        world = sum(self.peers[w].join.procs for w in workers)
        for group_rank, worker in enumerate(workers):
            orders[worker] = {
                "generation": generation,
                "group_rank": group_rank,
                "group_size": len(workers),
                "rank_offset": offset,
                "world_size": world,
                "master_host": "127.0.0.1",
                "digest": f"digest-{generation}",
                "restarts": restarts,
                "max_restarts": 10,
                **more,
            }
            offset += self.peers[worker].join.procs
        return orders

    async def form(
        self, generation: int, workers: list[int], restarts: int = 0, seconds: float = 20.0, **more: Any
    ) -> dict[int, dict[str, Any]]:
        """Prepare, the store's port, start; returns once every agent is running (or beyond)."""
        orders = self.members(generation, workers, restarts, **more)
        for worker, fields in orders.items():
            self.order(worker, **fields)
        await self.until(lambda: all(self.peers[w].state.generation == generation for w in workers), seconds)
        await self.until(lambda: self.peers[workers[0]].state.store_port, seconds)
        for worker, fields in orders.items():
            fields["master_port"] = self.peers[workers[0]].state.store_port
            self.order(worker, **fields)
        await self.until(
            lambda: all(
                self.peers[w].state.generation == generation and self.peers[w].state.phase not in (m.IDLE, m.PREPARED) for w in workers
            ),
            seconds,
        )
        return orders


@dataclass
class AgentProcess:
    process: asyncio.subprocess.Process
    run_dir: Path
    marker: str
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def kill(self, number: int = signal.SIGKILL) -> None:
        with suppress(ProcessLookupError):  # it has ended, and its exit status is on its way to us
            os.kill(self.pid, number)

    async def ended(self, seconds: float = 15.0) -> int:
        return await asyncio.wait_for(self.process.wait(), seconds)

    def output(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def result(self) -> dict[str, Any]:
        return json.loads((self.run_dir / "termination").read_text())

    def processes(self) -> dict[int, str]:
        """Everything that carries this agent's marker, by pid: its command line."""
        return marked(self.marker)

    @property
    def ranks(self) -> dict[int, int]:
        """rank -> pid. A rank has its report file mapped, or will have it; the first process of a line of descent counts."""
        ranks: dict[int, int] = {}
        mine = self.processes()
        for pid in mine:
            rank = rank_of(pid)
            if rank is not None and rank_of(parent(pid)) is None:
                ranks[rank] = pid
        return ranks


def rank_of(pid: int) -> int | None:
    """The rank of a process: by its environment when it was started cold, by the report file that it has mapped when it was forked."""
    if "RANK" in (env := environment(pid)):
        return int(env["RANK"])
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return None
    found = re.search(r"/report-\d+-(\d+)", maps)
    return int(found[1]) if found and "-m lepton_trainer.agent" not in cmdline(pid) else None


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


def environment(pid: int) -> dict[str, str]:
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in data.decode("utf-8", "replace").split("\0") if "=" in entry)


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def marked(marker: str) -> dict[int, str]:
    """Living processes whose initial environment carries the marker."""
    found: dict[int, str] = {}
    needle = f"{MARKER}={marker}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if needle in (entry / "environ").read_bytes().split(b"\0") and alive(int(entry.name)):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
            except OSError:
                continue
    return found


async def wait_for(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s"
        await asyncio.sleep(0.02)
    return found


@asynccontextmanager
async def coordinator():
    """A coordinator that is gone when the block is left."""
    it = Coordinator()
    await it.start()
    try:
        yield it
    finally:
        await it.stop()


@asynccontextmanager
async def agents(tmp_path: Path, it: Coordinator, command: list[str], count: int = 1, procs: int = 1, cwd: Path | None = None, **env: str):
    """`count` agents that have joined; afterwards nothing that descends from them is left, or the test fails."""
    started = [await start_agent(tmp_path, it, command, worker, procs, cwd, **env) for worker in range(count)]
    try:
        await it.until(lambda: len(it.peers) == count)
        yield started
    finally:
        for agent in started:
            if agent.process.returncode is None:
                agent.kill()
                await agent.process.wait()
        for agent in started:
            await wait_for(lambda agent=agent: not agent.processes(), 5)


async def start_agent(
    tmp_path: Path, it: Coordinator, command: list[str], worker: int = 0, procs: int = 1, cwd: Path | None = None, **env: str
) -> AgentProcess:
    run_dir = tmp_path / f"run-{worker}"
    run_dir.mkdir(exist_ok=True)
    marker = uuid.uuid4().hex
    log = run_dir / "agent.log"
    program = env.pop("AGENT", f"{sys.executable} -m lepton_trainer.agent").split()
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("LEPTON_", "OMP_"))}
    variables |= {
        "PYTHONPATH": str(SOURCE),
        "LEPTON_NAMESPACE": "default",
        "LEPTON_JOB_NAME": "job",
        "LEPTON_JOB_UID": "job-uid",
        "LEPTON_JOB_WORKER_INDEX": str(worker),
        "LEPTON_WORKER_UID": f"uid-{worker}",
        "LEPTON_WORKER_NAME": f"job-{worker}",
        "LEPTON_COORDINATOR": f"tcp://127.0.0.1:{it.port}",
        "LEPTON_HOST": "127.0.0.1",
        "LEPTON_PROCS_PER_WORKER": str(procs),
        "LEPTON_METRICS_PORT": "0",
        "LEPTON_RUN_DIR": str(run_dir),
        "LEPTON_TERMINATION_LOG": str(run_dir / "termination"),
        "LEPTON_WARM_START": "0",
        MARKER: marker,
    } | env
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            *program, "--", *command, cwd=cwd or tmp_path, env=variables, stdout=file, stderr=file
        )
    return AgentProcess(process, run_dir, marker, log)


__all__ = ["AgentProcess", "Coordinator", "agents", "alive", "coordinator", "environment", "marked", "replace", "start_agent", "wait_for"]
