"""A very small API server for faults that a real one shows too rarely: each request is answered by the next of the test's own answers."""

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web
from kubernetes.aio.client import Configuration

Answer = tuple[int, dict[str, Any]] | tuple[int, dict[str, Any], dict[str, str]] | Callable[[dict[str, Any]], Any]


def status(code: int, reason: str, message: str, **details: Any) -> Answer:
    return code, {"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message, "details": details}


class FakeApi:
    """`answers` are used up in order, the last one stays; `requests` holds (method, path with query, body).

    `routes` come first: the answer of the first whose key is part of the path."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.routes: dict[str, Answer] = {}
        self.requests: list[tuple[str, str, Any]] = []
        self._runner: web.AppRunner | None = None
        self.configuration = Configuration()

    async def __aenter__(self) -> "FakeApi":
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self.configuration.host = f"http://127.0.0.1:{port}"
        return self

    async def __aexit__(self, *error: Any) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body = json.loads(text) if text else None
        self.requests.append((request.method, request.path_qs, body))
        routed = [answer for part, answer in self.routes.items() if part in request.path]
        answer = routed[0] if routed else self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer({"request": request, "body": body})
            if hasattr(answer, "__await__"):
                answer = await answer
        code, content, *headers = answer
        return web.json_response(content, status=code, headers=headers[0] if headers else None)
