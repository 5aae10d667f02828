"""A blocking HTTP client for the one thread that keeps the Lease: independent of the event loop, and nothing of it takes longer than asked.

Each request has a connection of its own, so a half-dead one delays nothing, and reads certificates and token again, because they rotate.
"""

import http.client
import io
import json
import os
import socket
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
LARGEST = 1 << 20
"""Bytes of an answer; a Lease has under two thousand."""


class Unanswered(Exception):
    """There is no usable answer (refused, timed out, not allowed, an internal error); the request may have been carried out or not."""


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: dict[str, Any]

    @property
    def problem(self) -> str:
        return f"HTTP {self.status}: {self.body.get('message', '')}"


@dataclass(frozen=True, slots=True)
class BlockingApi:
    """`server` is the API server's URL. Files and a static token may be empty; `token_file` wins over `token`."""

    server: str
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    token_file: str = ""
    token: str = field(default="", repr=False)

    @classmethod
    def in_cluster(cls, environment: Mapping[str, str] = os.environ, account: Path = SERVICE_ACCOUNT) -> "BlockingApi | None":
        """As a pod's service account; None outside a pod."""
        host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT", "443")
        if not host or not (account / "token").exists():
            return None
        address = f"[{host}]" if ":" in host else host
        return cls(f"https://{address}:{port}", ca_file=str(account / "ca.crt"), token_file=str(account / "token"))

    @classmethod
    def of_configuration(cls, configuration: Any) -> "BlockingApi":
        """From a loaded `kubernetes` Configuration (a kubeconfig with certificates or a static token)."""
        bearer = str((configuration.api_key or {}).get("BearerToken") or (configuration.api_key or {}).get("authorization") or "")
        return cls(
            server=str(configuration.host),
            ca_file=str(configuration.ssl_ca_cert or ""),
            certificate_file=str(configuration.cert_file or ""),
            key_file=str(configuration.key_file or ""),
            token=bearer.removeprefix("Bearer ").strip(),
        )

    def request(self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float) -> Reply:
        """One request, `timeout` seconds from the first packet to the last. Raises `Unanswered`."""
        until = time.monotonic() + timeout
        try:
            with self._connect(until) as connection:
                connection.settimeout(_left(until))
                connection.sendall(self._head_and_body(method, path, body))
                return _reply(_everything(connection, until))
        except (OSError, http.client.HTTPException, ValueError) as error:
            words = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            raise Unanswered(f"{method} {self.server}{path}: {words}") from None

    def _connect(self, until: float) -> socket.socket:
        url = urlsplit(self.server)
        secure = url.scheme == "https"
        host = url.hostname or ""
        connection = socket.create_connection((host, url.port or (443 if secure else 80)), timeout=_left(until))
        if not secure:
            return connection
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
            if self.certificate_file:
                context.load_cert_chain(self.certificate_file, self.key_file or None)
            connection.settimeout(_left(until))
            return context.wrap_socket(connection, server_hostname=host)
        except BaseException:
            connection.close()
            raise

    def _head_and_body(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        url = urlsplit(self.server)
        payload = json.dumps(body).encode() if body is not None else b""
        token = Path(self.token_file).read_text().strip() if self.token_file else self.token
        lines = [
            f"{method} {url.path.rstrip('/')}{path} HTTP/1.1",
            f"Host: {url.netloc}",
            "Accept: application/json",
            "Content-Type: application/json",
            f"Content-Length: {len(payload)}",
            "User-Agent: lepton-operator/lease",
            "Connection: close",
            *([f"Authorization: Bearer {token}"] if token else []),
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + payload


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _everything(connection: socket.socket, until: float) -> bytes:
    """To the end of the stream. `http.client` alone would start its time-out anew with each byte that trickles in."""
    received = bytearray()
    while True:
        connection.settimeout(_left(until))
        data = connection.recv(65536)
        if not data:
            return bytes(received)
        received += data
        if len(received) > LARGEST:
            raise ValueError("the answer is too large")


class _Received:
    """What `http.client.HTTPResponse` reads instead of a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _reply(data: bytes) -> Reply:
    response = http.client.HTTPResponse(_Received(data))  # type: ignore[arg-type]
    response.begin()
    content = response.read()
    try:
        body = json.loads(content) if content else {}
    except ValueError:
        body = {"message": content[:300].decode("utf-8", "replace")}
    if not isinstance(body, dict):
        raise ValueError("the answer is not an object")
    if response.status not in (200, 201, 404, 409):
        raise Unanswered(f"HTTP {response.status}: {body.get('message', '')}")
    return Reply(response.status, body)
