"""The agent's one kept connection to the coordinator: connects, joins, keeps listening, leaves a silent one, tries again.

It knows nothing of generations: what arrives is handed on, what is to be sent is asked for. Training does not depend on it.
"""

import asyncio
import random
import ssl
import time
from pathlib import Path
from typing import Any, Callable, Optional, Tuple
from urllib.parse import urlsplit

from lepton_trainer.agent.settings import Settings
from lepton_trainer.protocol import messages as m
from lepton_trainer.protocol.frames import Decoder, encode, split_host_port

FIRST_TRY_SECONDS = 0.05
CAP_SECONDS = 5.0
CONNECT_SECONDS = 10.0
CHUNK = 65536
UNREAD_LIMIT = 4 << 20
"""Bytes that a coordinator may leave unread before it counts as dead."""


class Final(Exception):
    """The coordinator refused us for good."""

    def __init__(self, refused: m.Refused) -> None:
        super().__init__(f"{refused.code}: {refused.message}")
        self.refused = refused


class Link:
    def __init__(
        self,
        settings: Settings,
        join: Callable[[str], m.Join],
        receive: Callable[[Any], None],
        log: Callable[[str], None],
    ) -> None:
        """`join` makes the first message from the token; `receive` gets every Order and Ping; `log` a line for the pod's log."""
        self._settings = settings
        self._join = join
        self._receive = receive
        self._log = log
        self._writer: Optional[asyncio.StreamWriter] = None
        self._heard = 0.0
        self.connected = False
        self.left = time.monotonic()  # since when there is no coordinator, if there is none
        self.telemetry_seconds = m.Welcome(m.VERSION).telemetry_seconds
        self._silence = m.Welcome(m.VERSION).silence_seconds
        self._said = ""
        self._where = settings.coordinator  # as it was last read

    @property
    def alone(self) -> float:
        """Seconds without a coordinator; 0 with one."""
        return 0.0 if self.connected else time.monotonic() - self.left

    def send(self, message: Any) -> None:
        """Sends if there is a coordinator; otherwise the next Join carries what matters."""
        if self._writer is None or not self.connected:
            return
        self._writer.write(encode(message))
        if self._writer.transport.get_write_buffer_size() > UNREAD_LIMIT:
            self._writer.transport.abort()

    async def flush(self, seconds: float) -> None:
        """Waits until what was sent has left this process, `seconds` at most."""
        deadline = time.monotonic() + seconds
        while self._writer is not None and self._writer.transport.get_write_buffer_size() and time.monotonic() < deadline:
            await asyncio.sleep(0.005)

    async def run(self) -> None:
        """Connects and reconnects for ever; raises `Final` when there is no use in it."""
        failures = 0
        while True:
            bound = FIRST_TRY_SECONDS if failures == 0 else min(CAP_SECONDS, 0.25 * 2.0**failures)
            await asyncio.sleep(random.uniform(0, bound))
            hint = 0.0
            try:
                hint = await self._serve_one()
                why = "the coordinator closed the connection"
            except (OSError, ValueError, EOFError, asyncio.TimeoutError) as error:
                why = str(error) or type(error).__name__
            finally:
                was_connected = self.connected
                self._drop()
            failures = 0 if was_connected else failures + 1
            if why != self._said:
                self._say(f"no coordinator at {self._where}: {why}; training goes on, trying again")
                self._said = why
            if hint:
                await asyncio.sleep(random.uniform(0.5, 1.0) * hint)

    def _say(self, text: str) -> None:
        self._log(text)

    def _drop(self) -> None:
        if self.connected:
            self.left = time.monotonic()
        self.connected = False
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None

    async def _serve_one(self) -> float:
        """One connection from join to end; returns a hint when to try again, in seconds (0: none)."""
        host, port, tls = self._address()
        token = _read(self._settings.token_file)
        opened = asyncio.open_connection(host, port, ssl=tls, server_hostname=host if tls else None, limit=CHUNK)
        reader, writer = await asyncio.wait_for(opened, CONNECT_SECONDS)
        self._writer = writer
        self._heard = time.monotonic()
        writer.write(encode(self._join(token)))
        watch = asyncio.ensure_future(self._watch_silence())
        decoder = Decoder()
        try:
            while True:
                data = await reader.read(CHUNK)
                if not data:
                    return 0.0
                self._heard = time.monotonic()
                for message in decoder.feed(data):
                    if isinstance(message, m.Refused):
                        return self._refused(message)
                    if isinstance(message, m.NoLeader):
                        raise EOFError(message.message or "it is no longer the leader")
                    self._handle(message)
        finally:
            watch.cancel()

    def _handle(self, message: Any) -> None:
        if isinstance(message, m.Welcome):
            self.telemetry_seconds = max(0.05, message.telemetry_seconds)
            self._silence = max(0.1, message.silence_seconds)
            self.connected = True
            if self._said:
                self._say("the coordinator is back")
                self._said = ""
        elif isinstance(message, (m.Order, m.Ping)):
            self._receive(message)

    def _refused(self, refused: m.Refused) -> float:
        if refused.final:
            raise Final(refused)
        if refused.code != m.NOT_LEADER:
            self._say(f"the coordinator refuses this worker: {refused.message}")
        return refused.retry_seconds

    async def _watch_silence(self) -> None:
        while True:
            rest = self._heard + self._silence - time.monotonic()
            if rest <= 0:
                self._say(f"the coordinator has been silent for {self._silence:g} s: leaving it")
                if self._writer is not None:
                    self._writer.transport.abort()
                return
            await asyncio.sleep(min(rest, 1.0))

    def _address(self) -> Tuple[str, int, Optional[ssl.SSLContext]]:
        address = self._settings.coordinator
        if address.startswith("file:"):
            address = Path(urlsplit(address).path).read_text().strip()
        self._where = address
        scheme, _, rest = address.partition("://")
        host, port = split_host_port(rest)
        if scheme == "tcp":
            if host not in ("localhost", "::1") and not host.startswith("127."):
                raise ValueError(f"{address}: without TLS only loopback is allowed, write tls://")
            return host, port, None
        if scheme != "tls":
            raise ValueError(f"{address!r} is not tls://host:port or tcp://host:port")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cafile=self._settings.ca_file)
        return host, port, context


def _read(path: str) -> str:
    return Path(path).read_text().strip() if path else ""
