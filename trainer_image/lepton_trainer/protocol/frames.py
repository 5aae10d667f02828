"""Framing and (de)coding of the messages: four bytes of length, big endian, then one JSON object `{"type": ..., ...}`.

JSON because every Python has it and a capture can be read by eye; a length first because an oversized or garbage message is then refused
before a byte of it is stored. A wrong message raises `ProtocolError` with a sentence that names the field; nothing else is raised.

Standard library only, Python >= 3.9.
"""

import dataclasses
import json
import math
import struct
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple, Type, Union, get_args, get_origin, get_type_hints

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
    try:
        payload = _to_json(body).encode("ascii")
    except ValueError as error:
        raise ProtocolError(f"{type(message).__name__} cannot be written as JSON: {error}") from None
    if len(payload) > limit:
        raise ProtocolError(f"{type(message).__name__} of {len(payload)} bytes exceeds the limit of {limit}")
    return _HEADER.pack(len(payload)) + payload


_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def to_plain(message: Any) -> Dict[str, Any]:
    """The message as JSON-ready values; fields at their default are left out, which keeps frames small and skew harmless."""
    plain: Dict[str, Any] = {}
    for name, default in _shape(type(message)).defaults:
        value = getattr(message, name)
        if value != default:
            plain[name] = _plain_value(value)
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
    shape = _shape(kind)
    values: Dict[str, Any] = {}
    for name, value in plain.items():
        check = shape.checks.get(name)
        if check is not None:
            values[name] = check(value)
    for name in shape.required:
        if name not in values:
            raise ProtocolError(f"{kind.__name__}.{name} is missing")
    return kind(**values)


Check = Callable[[Any], Any]
"""JSON value -> field value; raises `ProtocolError` with the field's name."""


class _Shape:
    """What a message type looks like, worked out once: a coordinator decodes thousands of messages in a second."""

    __slots__ = ("checks", "defaults", "required")

    def __init__(self, kind: Type[Any]) -> None:
        hints = get_type_hints(kind)
        self.checks: Dict[str, Check] = {}
        self.defaults: List[Tuple[str, Any]] = []
        self.required: List[str] = []
        for entry in dataclasses.fields(kind):
            self.checks[entry.name] = _check(hints[entry.name], f"{kind.__name__}.{entry.name}")
            default: Any = entry.default
            if entry.default_factory is not dataclasses.MISSING:
                default = entry.default_factory()
            if default is dataclasses.MISSING:
                self.required.append(entry.name)
            self.defaults.append((entry.name, default))


_SHAPES: Dict[Type[Any], _Shape] = {}


def _shape(kind: Type[Any]) -> _Shape:
    shape = _SHAPES.get(kind)
    if shape is None:
        shape = _SHAPES[kind] = _Shape(kind)
    return shape


def _check(hint: Any, where: str) -> Check:
    origin = get_origin(hint)
    if origin is Union:
        present = _check(next(a for a in get_args(hint) if a is not type(None)), where)
        return lambda value: None if value is None else present(value)
    if origin is tuple:
        item = _check(get_args(hint)[0], where)
        return lambda value: tuple(map(item, _of_type(list, value, where)))
    if origin is dict:
        entry = _check(get_args(hint)[1], where)
        return lambda value: {key: entry(each) for key, each in _of_type(dict, value, where).items()}
    if dataclasses.is_dataclass(hint):
        return lambda value: from_plain(hint, value)  # type: ignore[arg-type]
    if hint is float:
        return lambda value: _number(value, where)
    if hint is int:
        return lambda value: _integer(value, where)
    return lambda value: _of_type(hint, value, where)


def _of_type(kind: Any, value: Any, where: str) -> Any:
    if type(value) is not kind:
        raise ProtocolError(f"{where}: expected {kind.__name__}, got {type(value).__name__}")
    return value


def _integer(value: Any, where: str) -> int:
    if type(value) is not int:
        raise ProtocolError(f"{where}: expected int, got {type(value).__name__}")
    if not -(1 << 63) <= value < 1 << 63:
        raise ProtocolError(f"{where}: a number of more than 64 bits")
    return value


def _number(value: Any, where: str) -> float:
    """A finite float: what is not finite travels as text where it may travel at all, because JSON has no word for it."""
    if type(value) is int and abs(value) < 1 << 1023:
        return float(value)
    if type(value) is not float:
        raise ProtocolError(f"{where}: expected float, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ProtocolError(f"{where}: {value} is not finite")
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
