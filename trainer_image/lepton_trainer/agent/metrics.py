"""`/metrics` and `/healthz` of a worker: the smallest HTTP/1.1 server that Prometheus and a kubelet are content with."""

import asyncio
from typing import Callable, Optional

from lepton_trainer.agent.settings import Settings

REQUEST_SECONDS = 5.0
REQUEST_LIMIT = 8192


class MetricsServer:
    def __init__(self, exposition: Callable[[], str]) -> None:
        self._exposition = exposition
        self._server: Optional[asyncio.AbstractServer] = None

    async def start(self, settings: Settings) -> int:
        """Listens, on loopback alone where the worker is there; leaves the port in a file, returns it. OSError: it is taken."""
        host = "127.0.0.1" if settings.host.startswith("127.") or settings.host == "localhost" else None
        self._server = await asyncio.start_server(self._serve, host, settings.metrics_port, limit=REQUEST_LIMIT)
        port: int = self._server.sockets[0].getsockname()[1]
        (settings.run_dir / "metrics-port").write_text(f"{port}\n")
        return port

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), REQUEST_SECONDS)
                method, path, _ = (head.split(b"\r\n", 1)[0].decode("latin-1") + "  ").split(" ", 2)
                status, body = self._answer(method, path.partition("?")[0])
                payload = b"" if method == "HEAD" else body.encode()
                kind = "text/plain; version=0.0.4; charset=utf-8"
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body.encode())}\r\n\r\n".encode() + payload
                )
                await writer.drain()
                if b"connection: close" in head.lower() or head.split(b"\r\n", 1)[0].endswith(b"HTTP/1.0"):
                    break
        except (OSError, EOFError, ValueError, asyncio.TimeoutError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    def _answer(self, method: str, path: str) -> "tuple[str, str]":
        if method not in ("GET", "HEAD"):
            return "405 Method Not Allowed", "only GET\n"
        if path == "/metrics":
            return "200 OK", self._exposition()
        if path == "/healthz":
            return "200 OK", "ok\n"
        return "404 Not Found", "there are /metrics and /healthz\n"
