"""How long a group of three CPU workers stands still when one of them is killed: Lepton in local mode, and stock torchrun, in one run.

    python bench/recovery.py [--number 20] [--torchrun 5]

Two faults: a worker's process is killed (SIGKILL to one rank, each in turn), and worker 0 with its agent is killed. Phases of Lepton's:
  detect    from the kill until somebody knows: the agent that reaps the rank, or the operator that sees the agent's process end
  decide    until every survivor holds the order for the new generation (plan, status write, publication)
  restart   until every survivor has killed the old ranks, met the new store and forked the new ranks
  catch-up  until every rank has made its first step (group formed, checkpoint loaded, model wrapped, one step)
Results go to bench/results/recovery-local.json.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.machine import facts
from lepton_operator.local.manifest import Manifest
from lepton_operator.local.run import LocalRun, Options
from lepton_operator.local.store import RunDirectory
from lepton_operator.worker import Agent

HERE = Path(__file__).parent
SCRIPT = HERE / "scripts" / "recovering.py"
RESULTS = HERE / "results" / "recovery-local.json"
WORKERS = 3
CUT_OFF_SECONDS = 60.0
PATIENCE_SECONDS = 180.0
GOALS = {"process": {"held": 0.3, "stepped": 1.0}, "worker 0": {"held": 0.3, "stepped": 2.0}}
"""Seconds, of the median: death -> every survivor holds the new generation; death -> they step again."""
Json = dict[str, Any]


class Notes:
    """What the ranks wrote down, by pid."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def all(self) -> list[Json]:
        return [json.loads(line) for path in self._folder.glob("rank-*") for line in path.read_text().splitlines() if line.endswith("}")]

    def of(self, what: str, since: float) -> dict[int, Json]:
        """The newest note of this kind of each rank, of those processes that started after `since`."""
        notes = self.all()
        young = {note["pid"] for note in notes if note["what"] == "start" and note["time"] > since}
        found = [note for note in notes if note["what"] == what and note["pid"] in young]
        return {note["rank"]: note for note in sorted(found, key=lambda note: note["time"])}

    def clear(self) -> None:
        for path in self._folder.glob("rank-*"):
            path.unlink()


async def until(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(0.1)  # the times are in the notes; looking often would only take the group's cores
    return found


class Lepton:
    """`lepton run` in this process, so that what the agents report of themselves can be read."""

    def __init__(self, folder: Path) -> None:
        os.environ["LEPTON_HOME"] = str(folder / "state")
        self.notes = Notes(folder)
        command = [sys.executable, str(SCRIPT), str(folder)]
        body: Json = {
            "apiVersion": "training.lepton.ai/v1alpha1",
            "kind": "LeptonTrainingJob",
            "metadata": {"name": "bench", "namespace": "default"},
            "spec": {
                "trainer": {"command": command},
                "workers": {"replicas": WORKERS, "minReplicas": 1},
                "recovery": {"maxRestarts": 100},
            },
        }
        self.run_dir = RunDirectory("default", "bench")
        self.run_dir.make()
        self._run = LocalRun(self.run_dir, Manifest(body, {}, folder), Options())
        self._task: asyncio.Task[int] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._run.run())
        await self.whole(0.0)

    async def whole(self, since: float) -> None:
        """Until all three workers step steadily in processes younger than `since`."""
        await until(lambda: len(steady := self.notes.of("steady", since)) == WORKERS and {n["world"] for n in steady.values()} == {WORKERS})

    async def stop(self) -> None:
        assert self._task is not None
        os.kill(os.getpid(), signal.SIGINT)
        await self._task

    @property
    def agents(self) -> list[Agent]:
        return [agent for agent in self._run.agents() if agent.connected]

    def status(self) -> Json:
        body = self.run_dir.read()
        assert body is not None
        status: Json = body["status"]
        return status

    async def process_killed(self, rank: int) -> Json:
        victim = next(note["pid"] for note in self.notes.all() if note["rank"] == rank and self._lives(note["pid"]))
        generation = self.status()["rendezvous"]["generation"]
        killed = time.time()
        os.kill(victim, signal.SIGKILL)
        await self.whole(killed)
        detected = min(a.state.timings["ended"] for a in self.agents if a.state.timings.get("ended", 0) > killed)
        return self._phases(killed, detected, generation)

    async def worker_killed(self, index: int) -> Json:
        name, record = next((n, r) for n, r in self.run_dir.records().items() if r["index"] == index and "ended" not in r)
        generation = self.status()["rendezvous"]["generation"]
        killed = time.time()
        os.kill(int(record["pid"]), signal.SIGKILL)
        survivors = WORKERS - 1
        await until(lambda: len(self.notes.of("first step", killed)) == survivors)
        staying = {agent.uid for agent in self.agents if agent.worker != index}
        await until(lambda: all(a.state.generation > generation and a.state.phase == "running" for a in self.agents if a.uid in staying))
        detected = float(json.loads((self.run_dir.workers / f"{name}.json").read_text())["ended"])
        found = self._phases(killed, detected, generation)
        await self.whole(killed)  # the replacement has come
        found["whole again"] = max(note["time"] for note in self.notes.of("first step", killed).values()) - killed
        return found

    def _phases(self, killed: float, detected: float, generation: int) -> Json:
        timings = [agent.state.timings for agent in self.agents if agent.state.generation > generation]
        held = max(timing["order"] for timing in timings)
        forked = max(timing["forked"] for timing in timings)
        stepped = max(note["time"] for note in self.notes.of("first step", killed).values())
        found = {"detect": detected - killed, "stepped": stepped - killed}
        if forked > stepped:  # the next generation, with the replacement, has come already: these times are its own
            return {**found, "decide": None, "restart": None, "catch-up": None, "held": None}
        return {**found, "decide": held - detected, "restart": forked - held, "catch-up": stepped - forked, "held": held - killed}

    @staticmethod
    def _lives(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        except OSError:
            return False


async def measure_lepton(number: int, report: Callable[[str], None]) -> Json:
    with tempfile.TemporaryDirectory() as folder:
        lepton = Lepton(Path(folder))
        await lepton.start()
        results: Json = {"process": [], "worker 0": []}
        try:
            for turn in range(number):
                lepton_notes_age = time.time()
                results["process"].append(await lepton.process_killed(turn % WORKERS))
                report(f"process killed {turn + 1}/{number}: stepped after {results['process'][-1]['stepped']:.3f} s")
                await asyncio.sleep(max(0.0, 1.2 - (time.time() - lepton_notes_age)))  # a telemetry period: the group is seen to step
            for turn in range(number):
                results["worker 0"].append(await lepton.worker_killed(0))
                report(f"worker 0 killed {turn + 1}/{number}: survivors stepped after {results['worker 0'][-1]['stepped']:.3f} s")
                await asyncio.sleep(1.2)
        finally:
            await lepton.stop()
        return results


class Torchrun:
    """Three agents of stock torchrun on this machine, the store in agent 0, as its documentation has it."""

    def __init__(self, folder: Path, port: int) -> None:
        self.notes = Notes(folder)
        self._folder = folder
        self._port = port
        self.agents: list[subprocess.Popen[bytes]] = []

    async def start(self) -> None:
        await asyncio.to_thread(self._spawn)
        await until(lambda: len(self.notes.of("steady", 0.0)) == WORKERS)

    def _spawn(self) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes=2:{WORKERS}", "--nproc-per-node=1", "--rdzv-backend=c10d"]
        command += [f"--rdzv-endpoint=127.0.0.1:{self._port}", "--rdzv-id=bench", "--max-restarts=100", str(SCRIPT), str(self._folder)]
        log = (self._folder / "torchrun.log").open("wb")
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        for _ in range(WORKERS):
            self.agents.append(subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True))
            time.sleep(0.5)  # so that the first one gets the store

    async def kill(self, victim: int, wanted: int) -> Json:
        """Until `wanted` ranks step again in new processes; "cut off" at 60 s, "lost" when every agent has given up."""
        killed = time.time()
        os.kill(victim, signal.SIGKILL)

        def over() -> bool:
            alone = all(agent.poll() is not None for agent in self.agents)
            return alone or len(self.notes.of("first step", killed)) >= wanted

        try:
            await until(over, CUT_OFF_SECONDS)
        except TimeoutError:
            return {"outcome": "cut off", "stepped": CUT_OFF_SECONDS}
        stepped = self.notes.of("first step", killed)
        if len(stepped) < wanted:
            return {"outcome": "lost", "stepped": None, "given up after": time.time() - killed}
        return {"outcome": "recovered", "stepped": max(note["time"] for note in stepped.values()) - killed}

    def stop(self) -> None:
        for agent in self.agents:
            for pid in [note["pid"] for note in self.notes.all()]:
                if Lepton._lives(pid):
                    os.kill(pid, signal.SIGKILL)
            if agent.poll() is None:
                agent.kill()
            agent.wait()


async def measure_torchrun(number: int, report: Callable[[str], None]) -> Json:
    """A group of its own for each try, because few survive one."""
    results: Json = {"process": [], "worker 0": []}
    for fault in results:
        for turn in range(number):
            with tempfile.TemporaryDirectory() as folder:
                stock = Torchrun(Path(folder), 29500 + turn + (100 if fault == "process" else 0))
                try:
                    await stock.start()
                    if fault == "process":
                        victim = next(n["pid"] for n in stock.notes.of("steady", 0.0).values() if n["rank"] == turn % WORKERS)
                        results[fault].append(await stock.kill(victim, WORKERS))
                    else:
                        results[fault].append(await stock.kill(stock.agents[0].pid, WORKERS - 1))
                finally:
                    stock.stop()
            report(f"torchrun, {fault} killed {turn + 1}/{number}: {results[fault][-1]}")
    return results


def summaries(lepton: Json) -> Json:
    phases = ("detect", "decide", "restart", "catch-up", "held", "stepped", "whole again")
    return {
        fault: {phase: summary([entry[phase] for entry in entries if phase in entry]) for phase in phases if phase in entries[0]}
        for fault, entries in lepton.items()
        if entries
    }


def summary(values: list[float | None]) -> Json:
    """Of the values that could be read; `n` says how many."""
    ordered = sorted(value for value in values if value is not None)
    return {
        "n": len(ordered),
        "min": round(ordered[0], 4),
        "p50": round(statistics.median(ordered), 4),
        "p95": round(ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))], 4),
        "max": round(ordered[-1], 4),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=20, help="kills of each kind, Lepton")
    parser.add_argument("--torchrun", type=int, default=5, help="kills of each kind, torchrun")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    about = facts()
    begun = time.monotonic()
    lepton = asyncio.run(measure_lepton(options.number, report))
    stock = asyncio.run(measure_torchrun(options.torchrun, report)) if options.torchrun else {}
    found = summaries(lepton)
    goals = {
        f"{fault}: {phase}": {"goal": goal, "p50": found[fault][phase]["p50"], "met": found[fault][phase]["p50"] <= goal}
        for fault, wanted in GOALS.items()
        for phase, goal in wanted.items()
    }
    result = {
        "machine": about,
        "workers": WORKERS,
        "seconds": round(time.monotonic() - begun, 1),
        "load_after": [round(load, 2) for load in os.getloadavg()],
        "lepton": found,
        "goals": goals,
        "torchrun": {fault: [entry["outcome"] for entry in entries] for fault, entries in stock.items()},
        "raw": {"lepton": lepton, "torchrun": stock},
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "raw"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
