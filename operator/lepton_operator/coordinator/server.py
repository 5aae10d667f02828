"""The coordinator's process: sockets, TLS, time. Started by `link`, ends when its operator does (end of file on the socket pair).

A process and event loop of its own, so that two thousand handshakes never delay a lease renewal and a reconcile never delays a heartbeat.
Run as `python -m lepton_operator.coordinator.server LISTENER_FD OPERATOR_FD`; both descriptors are inherited, so a coordinator that is
started again serves the connections that queued meanwhile.
"""

import asyncio
import logging
import os
import resource
import signal
import socket
import ssl
import sys
from collections import deque
from typing import Any, cast

import uvloop

from lepton_operator import clock
from lepton_operator.coordinator import messages
from lepton_operator.coordinator.connection import Connection
from lepton_operator.coordinator.sessions import Sessions
from lepton_operator.coordinator.tls import TlsFiles

JOINS_AT_ONCE = 256
"""Peers between accept and join; the others wait in the listener's queue, which costs nothing. So few that even a machine that is busy with
other things gets each of them through before its patience ends."""
QUEUED_FROM = 32
"""From so many peers on, a join takes long enough (10 ms and more) that absence says nothing about an agent."""
JOIN_SECONDS = 5.0
BEAT_SECONDS = 2.0
ROUND_SECONDS = 0.1
LATE_SECONDS = 0.3
"""A round so late means that this process did not run: it has not heard what the agents said meanwhile."""
USER_TIMEOUT_MS = 20_000
"""How long sent bytes may stay unacknowledged (a node that vanished) until the kernel resets the connection."""


class Server:
    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._operator: asyncio.Transport | None = None
        self._operator_reads = True
        self._outbox: list[bytes] = []
        self._tls: ssl.SSLContext | None = None
        self._places = asyncio.Semaphore(JOINS_AT_ONCE)
        self._placed: set[Connection] = set()  # past their handshake, not joined; each holds a place
        self._patience: deque[Connection] = deque()
        self._accepted = 0
        self._configured = asyncio.Event()
        self._queued = False
        self._greetings: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self.sessions = Sessions(clock=clock.now, tell=self.tell, soon=self._loop.call_soon, freed=self._freed)

    async def run(self, operator: socket.socket) -> None:
        """Until the operator ends. Raises what ended a part that nothing can replace: the operator then starts this process again."""
        await self._loop.create_unix_connection(lambda: OperatorEnd(self), sock=operator)
        works = (self._operator_ended(), self._rounds(), self._accept())
        parts = {asyncio.create_task(work) for work in works}
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for task in parts | self._greetings:
            task.cancel()
        for task in done:
            task.result()

    async def _operator_ended(self) -> None:
        await self._ended.wait()

    # The operator's end.

    def attached(self, transport: asyncio.Transport) -> None:
        self._operator = transport
        self.tell(messages.Ready(os.getpid()))

    def detached(self) -> None:
        self._operator = None
        self._ended.set()

    def operator_reads(self, reads: bool) -> None:
        self._operator_reads = reads

    def tell(self, message: Any) -> None:
        if self._operator is None or (isinstance(message, messages.Progressed) and not self._operator_reads):
            return  # an operator that is stopped must not cost memory: progress comes again
        if not self._outbox:
            self._loop.call_soon(self._flush)
        self._outbox.append(messages.frame(message))

    def _flush(self) -> None:
        """A whole group acknowledges at once: one write for all that came in together, not one for each."""
        frames, self._outbox = self._outbox, []
        if self._operator is not None:
            self._operator.write(b"".join(frames))

    def hear(self, message: Any) -> None:
        if isinstance(message, messages.Configure):
            self._configure(message)
        elif isinstance(message, messages.SetGroup):
            self.sessions.set_group(message.order)
        elif isinstance(message, messages.DropGroup):
            self.sessions.drop_group(message.job)
        elif isinstance(message, messages.Disconnect):
            self.sessions.disconnect(message)
        elif isinstance(message, messages.Probe):
            self.sessions.probe(message.job)
        elif isinstance(message, messages.Lead):
            self.sessions.lead(message.deadline)
        elif isinstance(message, messages.SetKeys):
            self.sessions.set_keys(message)
        elif isinstance(message, messages.Reviewed):
            self.sessions.reviewed(message)

    def _configure(self, message: messages.Configure) -> None:
        self.sessions.configure(message)
        if message.certificate:
            try:
                self._tls = TlsFiles(message.certificate, message.key).context()
            except OSError as error:  # changed under us since the operator looked: the older leaf serves on
                self.sessions.say(logging.ERROR, "leaf", f"the certificate {message.certificate} cannot be used: {error}")
        if self._tls is not None or not message.certificate:
            self._configured.set()

    # Peers.

    async def _accept(self) -> None:
        await self._configured.wait()
        while True:
            await self._places.acquire()
            try:
                peer, _ = await self._loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, or the peer went while it queued
                self._places.release()
                self.sessions.say(logging.WARNING, "accept", f"a connection could not be accepted: {error}")
                await asyncio.sleep(ROUND_SECONDS)
                continue
            greeting = asyncio.create_task(self._greet(peer))
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, peer: socket.socket) -> None:
        self._accepted += 1
        connection = Connection(self.sessions, clock.mono(), self._accepted)
        self._placed.add(connection)
        self._patience.append(connection)
        try:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
            patience = JOIN_SECONDS if self._tls else None
            await self._loop.connect_accepted_socket(lambda: connection, peer, ssl=self._tls, ssl_handshake_timeout=patience)
        except Exception as error:  # whatever it was, one peer's handshake costs nobody else anything
            self.sessions.say(logging.WARNING, "handshake", f"a TLS handshake failed: {error or 'nothing came in time'}")
            self._freed(connection)
            peer.close()

    def _freed(self, connection: Connection) -> None:
        if connection in self._placed:
            self._placed.discard(connection)
            self._places.release()

    async def _rounds(self) -> None:
        number, due = 0, clock.mono()
        slices = round(BEAT_SECONDS / ROUND_SECONDS)
        while True:
            due += ROUND_SECONDS
            await asyncio.sleep(max(0.0, due - clock.mono()))
            now = clock.mono()
            if now - due > LATE_SECONDS:
                self.tell(messages.Handshakes(queued=True, at=now))
                self._queued = True
                due = now
            self.sessions.round()
            self._close_silent(now)
            for connection in self.sessions.connected:
                if connection.slot % slices == number:
                    connection.beat()
            number = (number + 1) % slices
            queued = len(self._placed) >= QUEUED_FROM
            if queued != self._queued:
                self._queued = queued
                self.tell(messages.Handshakes(queued, now))

    def _close_silent(self, now: float) -> None:
        while self._patience and now - self._patience[0].opened > JOIN_SECONDS:
            connection = self._patience.popleft()
            if connection.connected and not connection.joined:
                self.sessions.say(logging.WARNING, "silent", f"{connection.peer} connected and did not join within {JOIN_SECONDS:.0f} s")
                connection.abort()


class OperatorEnd(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._decoder = messages.coordinator_decoder()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        operator = cast(asyncio.Transport, transport)  # uvloop's are no subclass
        operator.set_write_buffer_limits(high=4 * 1024 * 1024)
        self._server.attached(operator)

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            self._server.hear(message)

    def pause_writing(self) -> None:
        self._server.operator_reads(False)

    def resume_writing(self) -> None:
        self._server.operator_reads(True)

    def connection_lost(self, error: Exception | None) -> None:
        self._server.detached()


async def serve(listener_fd: int, operator_fd: int) -> None:
    listener = socket.socket(fileno=listener_fd)
    listener.setblocking(False)
    operator = socket.socket(fileno=operator_fd)
    operator.setblocking(False)
    await Server(listener).run(operator)


def main() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal's Ctrl-C or a group's SIGTERM: the operator decides when this ends
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))


if __name__ == "__main__":
    main()
