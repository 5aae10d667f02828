"""An agent without processes, for tests and benchmarks of the coordinator: joins, obeys orders at once, remembers what it was told."""

import asyncio
import itertools
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

from lepton_trainer.protocol.frames import Decoder, encode
from lepton_trainer.protocol.messages import (
    IDLE,
    PREPARED,
    RUNNING,
    VERSION,
    Join,
    NoLeader,
    Order,
    Ping,
    Pong,
    Progress,
    Refused,
    State,
    Telemetry,
    Welcome,
)

STORE_PORT = 29_400
TIMEOUT = 10.0


@dataclass
class SimulatedAgent(asyncio.Protocol):
    """`obedient`: prepares and starts every generation that it is told to, without a word from the test."""

    job: str = "default/digits"
    job_uid: str = "job-1"
    worker: int = 0
    uid: str = ""
    boot: str = "a"
    token: str = field(default="secret", repr=False)
    obedient: bool = True
    can_stop: bool = False
    version: int = VERSION
    progress: Progress = field(default_factory=Progress)
    on_order: Callable[["SimulatedAgent", Order], None] | None = None

    def __post_init__(self) -> None:
        self.uid = self.uid or f"pod-{self.worker}"
        self.state = State(seq=0)
        self.orders: list[Order] = []
        self.heard: list[Any] = []
        self.closed = False
        self._seq = itertools.count(1)
        self._decoder = Decoder()
        self._transport: asyncio.Transport | None = None
        self._news = asyncio.Event()

    async def connect(self, port: int, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> "SimulatedAgent":
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, host, port, ssl=tls, server_hostname="coordinator" if tls else None)
        return self

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport, self.closed = cast(asyncio.Transport, transport), False
        self._decoder = Decoder()
        self.send(self.join())

    def join(self) -> Join:
        return Join(
            version=self.version,
            job=self.job,
            job_uid=self.job_uid,
            worker=self.worker,
            worker_uid=self.uid,
            boot=self.boot,
            token=self.token,
            host=f"10.0.0.{self.worker % 250}",
            procs=1,
            state=self.state,
            progress=self.progress,
        )

    def data_received(self, data: bytes) -> None:
        for message in self._decoder.feed(data):
            self.heard.append(message)
            if isinstance(message, Order):
                self.orders.append(message)
                self._obey(message)
            elif isinstance(message, Ping):
                self.send(Pong(message.id, self.progress))
        self._news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._transport = None
        self._news.set()

    def _obey(self, order: Order) -> None:
        if self.on_order is not None:
            self.on_order(self, order)
        if not self.obedient or not order.generation or order.generation < self.state.highest:
            return
        if order.master_port == 0:
            port = STORE_PORT + order.generation if order.group_rank == 0 else 0
            if self.state.generation < order.generation:
                self.report(phase=PREPARED, generation=order.generation, highest=order.generation, store_port=port)
        elif (self.state.phase, self.state.generation) != (RUNNING, order.generation):
            self.report(phase=RUNNING, generation=order.generation, highest=order.generation, can_stop=self.can_stop)

    def report(self, **changes: Any) -> None:
        self.state = replace(self.state, seq=next(self._seq), **changes)
        self.send(self.state)

    def tell_progress(self, **changes: Any) -> None:
        self.progress = replace(self.progress, **changes)
        self.send(Telemetry(self.progress))

    def send(self, message: Any) -> None:
        if self._transport is not None:
            self._transport.write(encode(message))

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def leave(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    async def until(self, condition: Callable[["SimulatedAgent"], Any], timeout: float = TIMEOUT) -> "SimulatedAgent":
        async with asyncio.timeout(timeout):
            while not condition(self):
                self._news.clear()
                await self._news.wait()
        return self

    @property
    def order(self) -> Order | None:
        return self.orders[-1] if self.orders else None

    @property
    def welcome(self) -> Welcome | None:
        return next((message for message in self.heard if isinstance(message, Welcome)), None)

    @property
    def refusal(self) -> Refused | None:
        return next((message for message in self.heard if isinstance(message, Refused)), None)

    @property
    def leaderless(self) -> bool:
        return any(isinstance(message, NoLeader) for message in self.heard)

    @property
    def idle(self) -> bool:
        return self.state.phase == IDLE
