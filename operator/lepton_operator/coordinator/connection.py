"""One agent's connection, from its first byte to its last. Knows framing, numbering and patience; what messages mean is `sessions`' part.

There may be ten thousand: no timer, no task and no stream object per connection (28 KiB each with TLS).
"""

import asyncio
from dataclasses import replace
from typing import Any, Protocol, cast

from lepton_trainer.protocol.frames import Decoder, ProtocolError, encode
from lepton_trainer.protocol.messages import BAD_MESSAGE, Beat, Join, Order, Refused

BEAT = encode(Beat())


class Audience(Protocol):
    """Who is told what a connection does."""

    def received(self, connection: "Connection", message: Any) -> None: ...

    def closed(self, connection: "Connection") -> None: ...

    def noise(self, connection: "Connection", problem: str) -> None:
        """Something came that is not our protocol; the connection is closing."""


class Connection(asyncio.Protocol):
    __slots__ = (
        "_audience",
        "_decoder",
        "_order",
        "_seq",
        "_transport",
        "boot",
        "heard_seq",
        "job",
        "opened",
        "pending",
        "slot",
        "stuck_since",
        "uid",
    )

    def __init__(self, audience: Audience, opened: float, slot: int) -> None:
        self._audience = audience
        self._decoder: Decoder | None = Decoder()
        self._transport: asyncio.Transport | None = None
        self._order: Order | None = None
        self._seq = 0
        self.opened = opened  # mono
        self.slot = slot  # spreads the beats evenly over time
        self.heard_seq = 0  # of the newest State on this connection
        self.stuck_since = 0.0  # mono: since when the peer has not been reading; 0: it reads
        self.pending: Join | None = None  # waits for a verdict about its token
        self.job = ""  # set once joined
        self.uid = ""
        self.boot = ""

    @property
    def joined(self) -> bool:
        return bool(self.job)

    @property
    def peer(self) -> str:
        name = self._transport.get_extra_info("peername") if self._transport else None
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "a peer that is gone"

    @property
    def connected(self) -> bool:
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def data_received(self, data: bytes) -> None:
        if self._decoder is None:
            return  # already refused; what still comes is not read
        try:
            for message in self._decoder.feed(data):
                self._audience.received(self, message)
                if self._decoder is None:
                    return
        except ProtocolError as error:
            self._audience.noise(self, str(error))
            self.refuse(Refused(BAD_MESSAGE, str(error)))

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = self._decoder = None
        self._audience.closed(self)

    def pause_writing(self) -> None:
        self.stuck_since = self.stuck_since or -1.0  # `sessions` puts the time in at its next round: no clock here

    def resume_writing(self) -> None:
        self.stuck_since = 0.0

    def send(self, *messages: Any) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(map(encode, messages)))

    def beat(self) -> None:
        if self._transport is not None and not self.stuck_since and not self._transport.is_closing():
            self._transport.write(BEAT)

    def send_order(self, order: Order) -> None:
        """The order, unless the newest one sent here says the same."""
        if order != self._order:
            self._order = order
            self._seq += 1
            self.send(replace(order, seq=self._seq))

    def refuse(self, word: Any) -> None:
        """Sends a last word and closes; nothing more is read."""
        self._decoder = None
        self.send(word)
        self.close()

    def close(self) -> None:
        self._decoder = None
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes without waiting for a peer that does not read."""
        self._decoder = None
        if self._transport is not None:
            self._transport.abort()
