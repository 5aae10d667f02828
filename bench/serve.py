"""How fast /predict answers: p50, p99 and requests per second at 1, 8 and 64 clients, beside the bare model in a loop and the same model in
a minimal FastAPI + uvicorn server. One process and one torch thread each, the same weights, the same answers.

    python bench/serve.py                 ten rounds, into bench/results/serve.json
    python bench/serve.py --rounds 2 --seconds 1 --name serve-dry
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import torch
import trainer as bench

CLIENTS = (1, 8, 64)
SERVERS = ("lepton", "fastapi, async def", "fastapi, def")


def model(folder: Path) -> tuple[Path, list[bytes], list[Any]]:
    """A CNN for digits, trained shortly and exported; requests of one image each, and the answers of the model itself."""
    from lepton_trainer.train import loop, tasks
    from lepton_trainer.train.config import assignment

    document = {
        "imageClassification": {
            "training": {"epochs": 2.0},
            "checkpoint": {"path": str(folder)},
            "output": {"plots": False},
        },
        "export": {},
    }
    given = assignment(document)
    loop.train(given.task, given.delivery)
    images = np.asarray(tasks.build(given.task).data.test_images)  # type: ignore[attr-defined]
    return folder / "model", [json.dumps({"instances": [image.tolist()]}).encode() for image in images], list(images)


class Side:
    """A server process that is up."""

    def __init__(self, command: list[str]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(bench.ROOT / "trainer_image"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=bench.ROOT)

    async def ready(self, url: str, body: bytes) -> None:
        async with aiohttp.ClientSession() as session:
            for _ in range(600):
                try:
                    async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.1)
        raise SystemExit(f"{url} is not up after a minute")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


async def load(url: str, bodies: list[bytes], clients: int, seconds: float) -> list[float]:
    """Latencies in seconds of all requests that `clients` made one after the other for so long."""
    found: list[float] = []
    connector = aiohttp.TCPConnector(limit=clients)
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        end = time.perf_counter() + seconds

        async def client(number: int) -> None:
            turn = number
            while time.perf_counter() < end:
                begun = time.perf_counter()
                async with session.post(url, data=bodies[turn % len(bodies)]) as response:
                    await response.read()
                    assert response.status == 200
                found.append(time.perf_counter() - begun)
                turn += clients

        await asyncio.gather(*(client(number) for number in range(clients)))
    return found


def bare(directory: Path, images: list[Any], seconds: float) -> dict[str, float]:
    """The model in a loop, an image at a time, from the array to the class."""
    from lepton_trainer.train.serving import models
    from lepton_trainer.train.storage import open_storage

    storage = open_storage(str(directory))
    served = models.load(storage, models.found(storage), torch.device("cpu"))
    found: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        served.answer([images[len(found) % len(images)].astype(np.float32)])
        found.append(time.perf_counter() - begun)
    return figures(found, seconds)


def figures(latencies: list[float], seconds: float) -> dict[str, float]:
    ordered = np.sort(np.asarray(latencies)) * 1e3
    return {
        "p50_ms": float(np.percentile(ordered, 50)),
        "p99_ms": float(np.percentile(ordered, 99)),
        "requests_per_second": len(latencies) / seconds,
    }


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--name", default="serve", help="of the file in bench/results")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        directory, bodies, images = model(Path(folder))
        ports = {name: free_port() for name in SERVERS}
        minimal = [sys.executable, "bench/scripts/minimal_server.py", str(directory)]
        commands = {
            "lepton": [sys.executable, "-m", "lepton_trainer", "serve", str(directory), "--port", str(ports["lepton"])],
            "fastapi, async def": [*minimal, str(ports["fastapi, async def"]), "inline"],
            "fastapi, def": [*minimal, str(ports["fastapi, def"]), "threads"],
        }
        sides = {name: Side(command) for name, command in commands.items()}
        urls = {name: f"http://127.0.0.1:{port}/predict" for name, port in ports.items()}
        try:
            answers = []
            for name in SERVERS:
                asyncio.run(sides[name].ready(urls[name], bodies[0]))
                answers.append(asyncio.run(same(urls[name], bodies[:50])))
            assert all(answer == answers[0] for answer in answers), "the servers do not answer alike"

            def measure(name: str, clients: int) -> dict[str, float]:
                return figures(asyncio.run(load(urls[name], bodies, clients, chosen.seconds)), chosen.seconds)

            turns: dict[str, Any] = {
                f"{name}|{clients}": (lambda name=name, clients=clients: measure(name, clients)) for clients in CLIENTS for name in SERVERS
            }
            turns["bare|0"] = lambda: bare(directory, images, chosen.seconds)
            raw = bench.rounds(turns, chosen.rounds)
        finally:
            for side in sides.values():
                side.stop()
    found: dict[str, Any] = {
        "model": "digits, CNN of width 32",
        "seconds_per_turn": chosen.seconds,
        "bare": {},
        "servers": {},
        "ratios": {},
    }
    for key, values in raw.items():
        name, clients = key.split("|")
        told = {figure: bench.summary([value[figure] for value in values]) for figure in values[0]}
        if name == "bare":
            found["bare"] = told
        else:
            found["servers"].setdefault(name, {})[clients] = told
    for name in SERVERS[1:]:
        pairs = {
            "requests_per_second_at_64": [
                a["requests_per_second"] / b["requests_per_second"] for a, b in zip(raw["lepton|64"], raw[f"{name}|64"], strict=True)
            ],
            "p50_at_1": [a["p50_ms"] / b["p50_ms"] for a, b in zip(raw["lepton|1"], raw[f"{name}|1"], strict=True)],
        }
        found["ratios"][name] = {what: {**bench.summary(values), "mean": statistics.fmean(values)} for what, values in pairs.items()}
    bench.write(chosen.name, {**found, "raw": raw})
    for name, by in found["servers"].items():
        for clients, told in by.items():
            print(f"{name:20} {clients:>3}  " + "  ".join(f"{figure} {told[figure]['median']:.2f}" for figure in told))


async def same(url: str, bodies: list[bytes]) -> list[Any]:
    """The classes answered, for comparison."""
    async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
        found = []
        for body in bodies:
            async with session.post(url, data=body) as response:
                found.append([answer["index"] for answer in (await response.json())["predictions"]])
        return found


if __name__ == "__main__":
    main()
