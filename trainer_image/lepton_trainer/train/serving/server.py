"""The HTTP server of an exported model.

    POST /predict    {"instances": [...]} -> {"predictions": [...]}
    GET /healthz     it lives          GET /readyz    it wants requests
    GET /metrics     for Prometheus    GET /v1/model  the manifest of the model that answers

A wrong request costs its sender an answer that says what was expected, and nobody else anything. A newer model in the directory is
loaded and warmed up beside the one that answers, then takes its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import math
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, disable_created_metrics, generate_latest

from lepton_trainer.train.errors import TrainerError, UserError
from lepton_trainer.train.serving import models
from lepton_trainer.train.serving.adapters import Refused
from lepton_trainer.train.serving.batching import WAITING, Batcher, Full
from lepton_trainer.train.serving.figures import Figures
from lepton_trainer.train.serving.models import Served
from lepton_trainer.train.storage import Storage, open_storage

BODY = 16 << 20
"""Bytes of a request, at most."""
ASIDE = 64 << 10
"""A larger body is unpacked in another thread, so that the small ones do not wait for it."""
INSTANCES = 1024
"""Of one request, at most."""
LOOK_SECONDS = 2.0
"""How often a newer model is looked for."""
LEAVING_SECONDS = 3.0
"""After a SIGTERM requests are still answered for so long: who sends them hears of it a little later."""
DRAIN_SECONDS = 20.0
"""What is being answered then may take so long."""


class Wrong(Exception):
    """A request that gets a 4xx: its status, and what was expected."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Server:
    """Answers with the newest model of one directory."""

    def __init__(self, storage: Storage, device: torch.device) -> None:
        self.storage, self.device = storage, device
        self.served: Served | None = None
        self.leaving = False
        self.figures = Figures()
        self.batcher = Batcher(self.figures.batch.observe)
        self.figures.waiting.set_function(lambda: self.batcher.waiting)
        self.figures.ready.set_function(lambda: float(self.ready))

    @property
    def ready(self) -> bool:
        return self.served is not None and not self.leaving

    def application(self) -> web.Application:
        # The limit is ours to say, with a sentence; aiohttp's own stands a little above it.
        application = web.Application(client_max_size=BODY + 1024, middlewares=[self._guard])
        application.add_routes(
            [
                web.post("/predict", self.predict),
                web.get("/healthz", self.healthz),
                web.get("/readyz", self.readyz),
                web.get("/metrics", self.metrics),
                web.get("/v1/model", self.describe),
            ]
        )
        return application

    @web.middleware
    async def _guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Whatever goes wrong in one request becomes its answer."""
        try:
            response: web.StreamResponse = await handler(request)
        except web.HTTPException as error:
            response = _told(error.status, f"{request.method} {request.path}: {error.reason}. There is POST /predict, and GET /v1/model")
        except Exception:
            traceback.print_exc()
            response = _told(500, "the server failed at this request; its log has the details")
        if self.leaving:
            response.force_close()
        return response

    # -- requests ----------------------------------------------------------------------------------------------------------------

    async def predict(self, request: web.Request) -> web.Response:
        begun = time.perf_counter()
        response = await self._predict(request)
        self.figures.seconds.observe(time.perf_counter() - begun)
        self.figures.requests.labels(str(response.status)).inc()
        return response

    async def _predict(self, request: web.Request) -> web.Response:
        served = self.served
        if served is None:
            return _told(503, "the model is still being loaded", {"Retry-After": "1"})
        try:
            body = await _body(request)
            if len(body) > ASIDE:
                items = await asyncio.get_running_loop().run_in_executor(None, unpack, body, served)
            else:
                items = unpack(body, served)
            predictions = await self.batcher.predict(served, items)
        except Wrong as error:
            return _told(error.status, str(error))
        except Full:
            return _told(503, f"{WAITING} instances wait already", {"Retry-After": "1"})
        except Exception:
            traceback.print_exc()
            return _told(500, "the model failed at these instances; the server's log has the details")
        self.figures.predictions.inc(len(predictions))
        return web.Response(body=json.dumps({"predictions": predictions}).encode(), content_type="application/json")

    async def healthz(self, _: web.Request) -> web.Response:
        return web.json_response({"alive": True})

    async def readyz(self, _: web.Request) -> web.Response:
        why = "leaving" if self.leaving else "ready" if self.ready else "the model is being loaded"
        return web.json_response({"ready": self.ready, "state": why}, status=200 if self.ready else 503)

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self.figures.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def describe(self, _: web.Request) -> web.Response:
        if self.served is None:
            return _told(503, "the model is still being loaded", {"Retry-After": "1"})
        return web.json_response({**self.served.manifest, "instance": self.served.adapter.expects})

    # -- models ------------------------------------------------------------------------------------------------------------------

    def take(self, served: Served) -> None:
        """Answer with this model from now on; requests that are under way keep theirs."""
        if self.served is not None:
            self.figures.swaps.inc()
        self.served = served
        self.figures.model.info({"task": served.manifest["task"], "digest": served.digest})
        figure = served.manifest["metrics"][served.manifest["metric"]]
        print(f"serving {served.manifest['task']}, {served.manifest['metric']} {figure:.4f}, digest {served.digest[:12]}", flush=True)

    async def watch(self) -> NoReturn:
        """Take up each newer model; one that cannot be loaded is told once and left."""
        refused = ""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            newest = ""
            try:
                document = await asyncio.to_thread(models.found, self.storage)
                newest = document["digest"]
                if self.served is None or newest in (self.served.digest, refused):
                    continue
                self.take(await asyncio.to_thread(models.load, self.storage, document, self.device))
            except Exception as error:  # the model that answers is not to suffer from the next one
                refused = newest
                self.figures.failures.inc()
                told = str(error) if isinstance(error, TrainerError) else f"{type(error).__name__}: {error}"
                print(f"the newest model is not taken, the one before it goes on answering: {told}", file=sys.stderr, flush=True)


async def _body(request: web.Request) -> bytes:
    """The request's body.

    Raises:
        Wrong: it is not JSON by its own word, or too large.
    """
    if request.content_type != "application/json":
        raise Wrong(415, f"expected Content-Type application/json, found {request.headers.get('Content-Type', 'none')}")
    too_large = Wrong(413, f"a request has {BODY:,} bytes at most: send fewer instances at once")
    if (request.content_length or 0) > BODY:
        raise too_large
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise too_large from None


def unpack(body: bytes, served: Served) -> list[Any]:
    """The items of a request.

    Raises:
        Wrong: it is no JSON, has no instances, or one of them is not what the model takes.
    """
    try:
        document = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise Wrong(400, "the JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise Wrong(400, f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise Wrong(400, f"the body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}") from None
    except ValueError as error:
        raise Wrong(400, f"the body is not JSON: {error}") from None
    instances = document.get("instances") if isinstance(document, dict) else None
    expected = f'expected {{"instances": [...]}} with 1 to {INSTANCES} of them, each {served.adapter.expects}'
    if not isinstance(instances, list) or not 1 <= len(instances) <= INSTANCES:
        found = f"{len(instances)} instances" if isinstance(instances, list) else f"a {type(document).__name__} without a list of instances"
        raise Wrong(400, f"{expected}; found {found}")
    items = []
    for number, instance in enumerate(instances):
        try:
            items.append(served.adapter.read(instance))
        except Refused as error:
            raise Wrong(400, f"instance {number}: expected {served.adapter.expects}; {error}") from None
    return items


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number in it")


def _told(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": message}, status=status, headers=headers)


def serve(directory: str, host: str, port: int) -> None:
    """Serve until a SIGTERM or SIGINT.

    Raises:
        UserError: there is no model, or the address cannot be listened on.
        Unreachable: the store does not answer.
    """
    storage = open_storage(directory) if "://" in directory or Path(directory).is_dir() else None
    if storage is None:
        raise UserError("there is no such directory", where=directory, instead="Name the directory that an export wrote")
    document = models.found(storage)
    torch.set_num_threads(_processors())
    disable_created_metrics()  # type: ignore[no-untyped-call]
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    asyncio.run(_serve(Server(storage, device), document, host, port))


async def _serve(server: Server, document: dict[str, Any], host: str, port: int) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=DRAIN_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
    except OSError as error:
        await runner.cleanup()
        taken = error.errno == errno.EADDRINUSE
        what = "the port is in use by another program" if taken else f"cannot be listened on: {error.strerror}"
        raise UserError(
            what, where=f"{host}:{port}", instead="Write another --port" if taken else "Write another --host or --port"
        ) from None
    print(f"listening on http://{host}:{runner.addresses[0][1]}", flush=True)
    stopped = asyncio.create_task(stop.wait())
    try:
        loading = asyncio.create_task(asyncio.to_thread(models.load, server.storage, document, server.device))
        await asyncio.wait({loading, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            server.take(loading.result())
            watching = asyncio.create_task(server.watch())
            await asyncio.wait({watching, stopped}, return_when=asyncio.FIRST_COMPLETED)
            server.leaving = True
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            await asyncio.sleep(LEAVING_SECONDS)
    finally:
        await runner.cleanup()  # no new connections; what is being answered is waited for
        server.batcher.close()


def _processors() -> int:
    """Of this process, as its container is allowed: torch counts the machine's, and would be throttled."""
    count = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, float(quota) / float(period))
    return max(1, math.floor(count))
