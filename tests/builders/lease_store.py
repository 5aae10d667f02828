"""An API server's Lease store: conditional writes, and faults at will. In memory, or behind real HTTP in a thread."""

import json
import socket
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from lepton_operator.pods.blocking_api import Reply, Unanswered

NOT_FOUND = Reply(404, {"message": "not found"})
CONFLICT = Reply(409, {"message": "the object has been modified"})


class LeaseStore:
    """`lost` answers are carried out but never arrive; `away` ones are not even carried out."""

    def __init__(self) -> None:
        self.lease: dict[str, Any] | None = None
        self.version = 0
        self.away = False
        self.lost = False
        self.writes = 0
        self._lock = threading.Lock()

    @property
    def holder(self) -> str:
        return str(self.lease["spec"]["holderIdentity"]) if self.lease else ""

    def request(self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float) -> Reply:
        if self.away:
            raise Unanswered("no answer in time")
        with self._lock:
            reply = self._carry_out(method, body)
        if self.lost:
            raise Unanswered("no answer in time")
        return reply

    def _carry_out(self, method: str, body: Mapping[str, Any] | None) -> Reply:
        if method == "GET":
            return Reply(200, self.lease) if self.lease else NOT_FOUND
        assert body is not None
        if method == "POST":
            return CONFLICT if self.lease else self._store(body)
        if self.lease is None:
            return NOT_FOUND
        return self._store(body) if body["metadata"]["resourceVersion"] == str(self.version) else CONFLICT

    def _store(self, body: Mapping[str, Any]) -> Reply:
        self.version += 1
        self.writes += 1
        stored = json.loads(json.dumps(body))
        stored["metadata"]["resourceVersion"] = str(self.version)
        self.lease = stored
        return Reply(200, stored)

    def edit(self, **spec: Any) -> None:
        """As an administrator would."""
        assert self.lease is not None
        self._store({**self.lease, "spec": {**self.lease["spec"], **spec}})


class HttpStore:
    """The store behind HTTP/1.1; `with` it. `silent`: requests are read and never answered."""

    def __init__(self) -> None:
        self.store = LeaseStore()
        self.silent = threading.Event()
        self.tokens: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                outer.tokens.append(self.headers.get("Authorization", ""))
                if outer.silent.is_set():
                    self.rfile.read(1)  # until the client gives up
                    return
                reply = outer.store.request(self.command, self.path, body, 1.0)
                data = json.dumps(reply.body).encode()
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HttpStore":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def trickling_server() -> tuple[str, threading.Thread]:
    """A server that answers one byte every 50 ms, for ever; its URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as peer:
            peer.recv(65536)
            try:
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while True:
                    peer.sendall(b" ")
                    threading.Event().wait(0.05)
            except OSError:
                return

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}", thread
