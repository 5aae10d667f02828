"""Framing and (de)coding of the messages: four bytes of length, big endian, then one JSON object `{"type": ..., ...}`.

JSON because every Python has it and a capture can be read by eye; a length first because an oversized or garbage message is then refused
before a byte of it is stored. A wrong message raises `ProtocolError` with a sentence that names the field; nothing else is raised.

Standard library only, Python >= 3.9.
"""

import dataclasses
import json
import struct
from typing import Any, Dict, Iterable, Iterator, List, Tuple, Type, Union, get_args, get_origin, get_type_hints

from lepton_trainer.protocol import messages

MAX_FRAME = 256 * 1024
"""Bytes. A `State` with eight exits, each with traceback and log tail escaped in the worst way, stays below."""

_HEADER = struct.Struct(">I")
Registry = Dict[str, Type[Any]]


def registry(kinds: Iterable[Type[Any]]) -> Registry:
    """The message types that a stream may carry, by the name that they have on the wire."""
    return {kind.__name__: kind for kind in kinds}


AGENT_MESSAGES = registry(messages.MESSAGES)


class ProtocolError(ValueError):
    """What came over the wire is not a message of this protocol."""


def encode(message: Any, limit: int = MAX_FRAME) -> bytes:
    """One frame: header and payload. Raises `ProtocolError` when the message would be larger than `limit` bytes."""
    body = {"type": type(message).__name__}
    body.update(to_plain(message))
    payload = json.dumps(body, separators=(",", ":"), allow_nan=False).encode("utf-8")
    if len(payload) > limit:
        raise ProtocolError(f"{type(message).__name__} of {len(payload)} bytes exceeds the limit of {limit}")
    return _HEADER.pack(len(payload)) + payload


def to_plain(message: Any) -> Dict[str, Any]:
    """The message as JSON-ready values; fields at their default are left out, which keeps frames small and skew harmless."""
    plain: Dict[str, Any] = {}
    for entry in dataclasses.fields(message):
        value = getattr(message, entry.name)
        if entry.default is not dataclasses.MISSING and value == entry.default:
            continue
        if entry.default_factory is not dataclasses.MISSING and value == entry.default_factory():
            continue
        plain[entry.name] = _plain_value(value)
    return plain


def _plain_value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_plain(value)
    if isinstance(value, tuple):
        return [_plain_value(item) for item in value]
    return value


def from_plain(kind: Type[Any], plain: Any) -> Any:
    """A message of type `kind` from JSON values; unknown fields are ignored, wrong types raise `ProtocolError`."""
    if not isinstance(plain, dict):
        raise ProtocolError(f"{kind.__name__}: expected an object, got {type(plain).__name__}")
    hints = _hints(kind)
    values: Dict[str, Any] = {}
    for entry in dataclasses.fields(kind):
        if entry.name in plain:
            values[entry.name] = _typed(hints[entry.name], plain[entry.name], f"{kind.__name__}.{entry.name}")
        elif entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise ProtocolError(f"{kind.__name__}.{entry.name} is missing")
    return kind(**values)


_HINTS: Dict[Type[Any], Dict[str, Any]] = {}


def _hints(kind: Type[Any]) -> Dict[str, Any]:
    if kind not in _HINTS:
        _HINTS[kind] = get_type_hints(kind)
    return _HINTS[kind]


def _typed(hint: Any, value: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin is Union:
        return None if value is None else _typed(next(a for a in get_args(hint) if a is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ProtocolError(f"{where}: expected a list")
        return tuple(_typed(get_args(hint)[0], item, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise ProtocolError(f"{where}: expected an object")
        return {key: _typed(get_args(hint)[1], item, where) for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_plain(hint, value)  # type: ignore[arg-type]
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ProtocolError(f"{where}: expected {hint.__name__}, got {type(value).__name__}")
    return value


def decode(payload: bytes, types: Registry = AGENT_MESSAGES) -> Any:
    """The message in one payload, or None for a message type that `types` does not know."""
    try:
        body = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        raise ProtocolError("not an object with a type")
    kind = types.get(body["type"])
    return None if kind is None else from_plain(kind, body)


class Decoder:
    """Turns a stream of bytes, however it is cut, into messages; holds at most one frame."""

    def __init__(self, limit: int = MAX_FRAME, types: Registry = AGENT_MESSAGES) -> None:
        self._limit = limit
        self._types = types
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """Yields every message that `data` completes. After a `ProtocolError` the stream is beyond repair: close it."""
        self._buffer += data
        for payload in self._payloads():
            message = decode(payload, self._types)
            if message is not None:
                yield message

    def _payloads(self) -> List[bytes]:
        complete: List[bytes] = []
        at = 0
        while len(self._buffer) - at >= _HEADER.size:
            (size,) = _HEADER.unpack_from(self._buffer, at)
            if size > self._limit:
                raise ProtocolError(f"a message of {size} bytes exceeds the limit of {self._limit}")
            if len(self._buffer) - at - _HEADER.size < size:
                break
            complete.append(bytes(self._buffer[at + _HEADER.size : at + _HEADER.size + size]))
            at += _HEADER.size + size
        del self._buffer[:at]
        return complete


def split_host_port(address: str) -> Tuple[str, int]:
    """("host", port) of "host:port" or "[v6]:port"; `ValueError` says what is wrong with it."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{address!r} is not host:port")
    return host.strip("[]"), int(port)
