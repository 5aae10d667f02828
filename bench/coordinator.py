"""One coordinator and thousands of agents: real TLS sockets, real RS256 tokens, the real operator's link; only the agents are simulated.

Measures joins, memory of the coordinator per connection, the time from publishing a generation to the last member's acknowledgement
(prepared) and to the last member running (both steps), and how long after a SIGKILL of the coordinator all agents are back with their
order. The agents live in processes of their own on the same machine and share its cores.

    python bench/coordinator.py [--agents 2000] [--rounds 30] [--out bench/results/coordinator.json]
"""

import argparse
import asyncio
import json
import os
import random
import signal
import ssl
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import jwt
import uvloop
from cryptography.hazmat.primitives.asymmetric import rsa

ROOT = Path(__file__).resolve().parents[1]
for folder in ("", "operator", "trainer_image", "tests"):
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))

from bench import figures, machine  # noqa: E402
from lepton_operator import clock  # noqa: E402
from lepton_operator.coordinator import link as link_module  # noqa: E402
from lepton_operator.coordinator.link import CoordinatorLink  # noqa: E402
from lepton_operator.coordinator.tls import TlsFiles  # noqa: E402
from lepton_operator.pods.certificates import new_authority, new_leaf  # noqa: E402
from lepton_operator.worker import GroupOrder, MemberOrder  # noqa: E402
from lepton_trainer.protocol.messages import PREPARED, RUNNING, Order  # noqa: E402
from lepton_trainer.protocol.names import TOKEN_AUDIENCE  # noqa: E402
from simulated_agent import SimulatedAgent  # noqa: E402

JOB, JOB_UID, ISSUER, KID = "bench/wide", "job-uid", "https://bench.issuer", "bench-key"
HOST = "coordinator"
FLEETS = 2
WAIT_SECONDS = 60.0
FIRST_RETRY_SECONDS = 0.05


# The agents' side: one process of many agents, told what to do by lines on its standard input.


class BenchAgent(SimulatedAgent):
    """`prepare_only`: acknowledges a generation and goes no further, so that one step can be measured alone."""

    prepare_only = False
    lost: ClassVar[list[Callable[["BenchAgent"], None]]] = []

    def _obey(self, order: Order) -> None:
        if not BenchAgent.prepare_only:
            super()._obey(order)
        elif order.generation > self.state.highest:
            self.report(phase=PREPARED, generation=order.generation, highest=order.generation, store_port=0)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.heard.clear()
        del self.orders[:-1]

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        for callback in self.lost:
            callback(self)


async def fleet(settings: dict[str, Any]) -> None:
    """Commands: connect, prepare-only, both-steps; ends with its standard input. Agents come back by themselves, as real ones do."""
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trust.load_verify_locations(cadata=settings["bundle"])
    tasks: set[asyncio.Task[None]] = set()
    at_once = asyncio.Semaphore(256)

    def start(agent: BenchAgent, wait: float) -> None:
        task = asyncio.create_task(come(agent, wait))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def come(agent: BenchAgent, wait: float) -> None:
        await asyncio.sleep(wait)
        while True:
            try:
                async with at_once:
                    await asyncio.get_running_loop().create_connection(
                        lambda: agent, "127.0.0.1", settings["port"], ssl=trust, server_hostname=HOST
                    )
                return
            except OSError:
                await asyncio.sleep(random.uniform(0, 0.5))

    agents = [
        BenchAgent(job=JOB, job_uid=JOB_UID, worker=index, uid=f"pod-{index}", token=token) for index, token in settings["tokens"].items()
    ]
    BenchAgent.lost.append(lambda agent: start(agent, random.uniform(0, FIRST_RETRY_SECONDS)))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        if line == "connect":
            for agent in agents:
                start(agent, 0.0)
        else:
            BenchAgent.prepare_only = line == "prepare-only"
        print("done", flush=True)


# The operator's side.


class Bench:
    """A coordinator with its link, and fleets of agents in other processes; `async with` it."""

    def __init__(self, agents: int, folder: Path) -> None:
        self.count, self._folder = agents, folder
        self._key = rsa.generate_private_key(65537, 2048)
        self._authority = new_authority(datetime.now(UTC))
        tls = TlsFiles(str(folder / "leaf.crt"), str(folder / "leaf.key"))
        for path, text in zip((tls.certificate, tls.key), new_leaf(self._authority, [HOST], datetime.now(UTC)), strict=True):
            Path(path).write_text(text)
        self.link = CoordinatorLink(listen=("127.0.0.1", 0), tls=tls, on_change=self._changed)
        self.number = 0
        self._changes = 0
        self._awaited: tuple[int, asyncio.Event] | None = None
        self._fleets: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> "Bench":
        await self.link.start()
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key()))
        self.link.set_keys({"keys": [{**public, "kid": KID}]}, ISSUER)
        self.link.lead(clock.mono() + 3600)
        self.link.set_group(self.order())
        for number in range(FLEETS):
            settings = {
                "port": self.link.port,
                "bundle": self._authority.bundle,
                "tokens": {index: self._token(index) for index in range(number, self.count, FLEETS)},
            }
            file = self._folder / f"fleet-{number}.json"
            file.write_text(json.dumps(settings))
            pipe = asyncio.subprocess.PIPE
            command = (sys.executable, str(Path(__file__).resolve()), "--fleet", str(file))
            self._fleets.append(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in self._fleets:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._fleets:
            try:
                await asyncio.wait_for(process.wait(), 10)
            except TimeoutError:
                process.kill()
        await self.link.stop()

    def _token(self, index: int) -> str:
        now = int(time.time())
        body = {
            "aud": [TOKEN_AUDIENCE],
            "exp": now + 3600,
            "iat": now,
            "nbf": now,
            "iss": ISSUER,
            "kubernetes.io": {"namespace": "bench", "pod": {"name": f"wide-{index}", "uid": f"pod-{index}"}},
        }
        return jwt.encode(body, self._key, algorithm="RS256", headers={"kid": KID})

    def order(self) -> GroupOrder:
        members = tuple(MemberOrder(f"pod-{i}", "a", i, i, i) for i in range(self.count)) if self.number else ()
        workers = {f"pod-{i}": i for i in range(self.count)}
        digest = f"digest-{self.number}"
        return GroupOrder(JOB, JOB_UID, workers, self.number, members, len(members), "10.0.0.0" if members else "", digest)

    async def tell(self, word: str) -> None:
        for process in self._fleets:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(word.encode() + b"\n")
            await process.stdout.readline()

    def _changed(self, job: str) -> None:
        self._changes += 1
        if self._awaited is not None and self._changes >= self._awaited[0]:
            self._awaited[1].set()

    async def _changes_come(self, expected: int) -> None:
        event = asyncio.Event()
        self._awaited = (expected, event)
        if self._changes < expected:
            await asyncio.wait_for(event.wait(), WAIT_SECONDS)
        self._awaited = None

    async def join(self) -> float:
        """Seconds from the word to the last join."""
        await self.tell("both-steps")  # answered once their imports are done
        self._changes, began = 0, time.perf_counter()
        await self.tell("connect")
        await self._changes_come(self.count)
        took = time.perf_counter() - began
        assert self.link.connected == self.count
        return took

    async def generation(self, phase: str) -> float:
        """Seconds from publishing the next generation until the operator knows that its last member has reached `phase`."""
        self.number += 1
        order = self.order()
        self._changes, began = 0, time.perf_counter()
        self.link.set_group(order)
        await self._changes_come(self.count * (2 if phase == RUNNING else 1))
        took = time.perf_counter() - began
        states = [agent.state for agent in self.link.agents(JOB)]
        assert {(state.generation, state.phase) for state in states} == {(self.number, phase)}, "not every member got there"
        return took

    async def restart(self) -> float:
        """Seconds from a SIGKILL of the coordinator until all agents are back; each time as if it were the first for long."""
        link_module.STEADY_SECONDS = 0.0
        self._changes, began = 0, time.perf_counter()
        os.kill(self.link.pid, signal.SIGKILL)
        await self._changes_come(1)
        assert self.link.connected == 0
        self._changes = 0
        await self._changes_come(self.count)
        took = time.perf_counter() - began
        assert self.link.connected == self.count
        return took

    def cpu(self) -> dict[str, float]:
        """CPU seconds used so far, by process."""
        own = os.times()
        fields = Path(f"/proc/{self.link.pid}/stat").read_text().rpartition(")")[2].split()
        return {"operator": own.user + own.system, "coordinator": (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")}

    def memory(self) -> int:
        """Resident bytes of the coordinator process."""
        return int(Path(f"/proc/{self.link.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def summary(seconds: list[float]) -> dict[str, Any]:
    return {**figures.summary(seconds), "seconds": [round(value, 4) for value in seconds]}


def spent(before: dict[str, float], after: dict[str, float], rounds: int) -> dict[str, float]:
    return {name: round((after[name] - before[name]) / rounds, 4) for name in before}


async def measure(agents: int, rounds: int, restarts: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        async with Bench(agents, Path(folder)) as bench:
            empty = bench.memory()
            began = bench.cpu()
            joins = await bench.join()
            joined = bench.cpu()
            memory = bench.memory()
            await bench.tell("prepare-only")
            prepared = [await bench.generation(PREPARED) for _ in range(rounds)]
            acknowledged = bench.cpu()
            await bench.tell("both-steps")
            running = [await bench.generation(RUNNING) for _ in range(rounds)]
            ran = bench.cpu()
            after = bench.memory()
            returns = [await bench.restart() for _ in range(restarts)]
    return {
        "agents": agents,
        "join_all_seconds": round(joins, 3),
        "memory_mib_empty": round(empty / 2**20, 1),
        "memory_kib_per_connection": round((memory - empty) / agents / 1024, 1),
        "memory_kib_per_connection_after_rounds": round((after - empty) / agents / 1024, 1),
        "published_to_last_acknowledgement_seconds": summary(prepared),
        "published_to_last_member_running_seconds": summary(running),
        "cpu_seconds_for_all_joins": spent(began, joined, 1),
        "cpu_seconds_per_acknowledged_generation": spent(joined, acknowledged, rounds),
        "cpu_seconds_per_running_generation": spent(acknowledged, ran, rounds),
        "coordinator_killed_to_all_agents_back_seconds": summary(returns),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fleet", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.fleet:
        settings = json.loads(given.fleet.read_text())
        settings["tokens"] = {int(index): token for index, token in settings["tokens"].items()}
        uvloop.run(fleet(settings))
        return
    about = machine.facts()
    result = {"machine": about, **uvloop.run(measure(given.agents, given.rounds, given.restarts))}
    if given.out:
        figures.save("coordinator", result, given.out)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
