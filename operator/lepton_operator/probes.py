"""Serves /metrics, /healthz and /readyz, plain HTTP as scrapers and kubelets expect; nothing here changes state.

Ready: the cache is primed. Alive: the event loop answers at all; the API server being away is no reason to restart.
"""

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class ProbeServer:
    """Raises OSError from `start` when the port is taken."""

    def __init__(self, registry: CollectorRegistry, ready: Callable[[], str]) -> None:
        """`ready` returns why the operator is not ready, or an empty string."""
        self._registry = registry
        self._ready = ready
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._alive)
        app.router.add_get("/readyz", self._readiness)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)

    async def start(self, port: int, host: str | None = None) -> int:
        """The port that was bound (0 asks for a free one). `host` None: every interface, IPv4 and IPv6."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE})

    async def _alive(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readiness(self, request: web.Request) -> web.Response:
        why_not = self._ready()
        return web.Response(text=(why_not or "ok") + "\n", status=503 if why_not else 200)
