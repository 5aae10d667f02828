"""What comes over the wire: any message, cut anywhere, arrives as it was sent; anything else is refused with one kind of error."""

import dataclasses
import itertools
import json
import typing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_trainer.protocol.frames import MAX_FRAME, Decoder, ProtocolError, decode, encode, from_plain
from lepton_trainer.protocol.messages import MESSAGES, Beat, Join, Order, ProcessExit, Progress, State, StopOrder, Telemetry

TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Any value of a field's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union:
        return st.none() | values(arguments[0])
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=2).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT, values(arguments[1]), max_size=3)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{field.name: values(hints[field.name]) for field in dataclasses.fields(hint)})
    return {int: st.integers(-(2**53), 2**53), float: FLOAT, str: TEXT, bool: st.booleans()}[hint]


ANY_MESSAGE = st.one_of(*(values(kind) for kind in MESSAGES))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)


def fields_of(kind: Any) -> st.SearchStrategy[tuple[Any, dict[str, Any]]]:
    """A message type and a value, right or wrong, for each of its fields."""
    hints = typing.get_type_hints(kind)
    each = {field.name: JSON | values(hints[field.name]) for field in dataclasses.fields(kind)}
    return st.tuples(st.just(kind), st.fixed_dictionaries({}, optional=each))


ANY_FIELDS = st.one_of(*map(fields_of, MESSAGES))


def framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


@settings(max_examples=100, deadline=None)
@given(st.lists(ANY_MESSAGE, max_size=4), st.lists(st.integers(0, 3000), max_size=6))
def test_messages_arrive_as_they_were_sent_however_the_stream_is_cut(messages: list[Any], cuts: list[int]) -> None:
    stream = b"".join(map(encode, messages))
    at = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    decoder = Decoder()
    arrived = [message for begin, end in itertools.pairwise(at) for message in decoder.feed(stream[begin:end])]
    assert arrived == messages


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_protocol_error(data: bytes) -> None:
    for stream in (data, framed(data)):
        try:
            list(Decoder().feed(stream))
        except ProtocolError as error:
            assert len(str(error)) > 8


@settings(max_examples=150, deadline=None)
@given(ANY_FIELDS)
def test_no_field_of_a_wrong_type_raises_anything_but_a_protocol_error_or_comes_through(fields: tuple[Any, dict[str, Any]]) -> None:
    kind, plain = fields
    try:
        message = from_plain(kind, json.loads(json.dumps(plain, default=dataclasses.asdict)))
    except ProtocolError as error:
        assert any(word in str(error) for word in ("expected", "is missing", "is not finite", "64 bits"))
    else:
        assert decode(encode(message)[4:]) == message


def test_fields_at_their_default_are_not_sent() -> None:
    assert json.loads(encode(State(seq=1))[4:]) == {"type": "State", "seq": 1}
    assert json.loads(encode(Telemetry(Progress()))[4:]) == {"type": "Telemetry", "progress": {}}


def test_what_a_later_version_adds_is_ignored_and_what_it_leaves_out_has_its_default() -> None:
    assert decode(b'{"type":"Order","seq":3,"colour":"green","stop":{"proposal":1,"call":2,"why":"?"}}') == Order(3, stop=StopOrder(1, 2))
    assert decode(b'{"type":"Unheard","x":1}') is None
    assert list(Decoder().feed(framed(b'{"type":"Unheard"}') + encode(Beat()))) == [Beat()]


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        (b'{"type":"State"}', "State.seq is missing"),
        (b'{"type":"State","seq":"1"}', "State.seq: expected int, got str"),
        (b'{"type":"State","seq":true}', "State.seq: expected int, got bool"),
        (b'{"type":"State","seq":1,"exits":[{"rank":0}]}', "ProcessExit.local_rank is missing"),
        (b'{"type":"State","seq":1,"exits":{}}', "State.exits: expected list"),
        (b'{"type":"State","seq":1,"timings":{"a":"b"}}', "State.timings: expected float"),
        (b'{"type":"Telemetry","progress":7}', "Progress: expected an object"),
        (b'{"type":"Telemetry","progress":{"step_age":NaN}}', "Progress.step_age: nan is not finite"),
        (b'{"type":"Telemetry","progress":{"step_age":1e999}}', "Progress.step_age: inf is not finite"),
        (b'{"type":"Telemetry","progress":{"step_age":1' + b"0" * 400 + b"}}", "Progress.step_age: expected float, got int"),
        (b'{"type":"State","seq":9223372036854775808}', "State.seq: a number of more than 64 bits"),
        (b"[1]", "not an object with a type"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_a_wrong_message_is_refused_with_a_sentence_that_names_the_field(payload: bytes, sentence: str) -> None:
    with pytest.raises(ProtocolError, match=sentence.replace(".", r"\.")):
        decode(payload)


def test_an_oversized_message_is_refused_before_its_bytes_are_kept() -> None:
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        list(Decoder().feed((MAX_FRAME + 1).to_bytes(4, "big")))
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        encode(State(seq=1, leaving="x" * MAX_FRAME))


def test_the_largest_state_that_an_agent_may_send_fits() -> None:
    worst = ProcessExit(0, 0, exit_code=1, error="\x00" * 300, traceback="\x00" * 4096, log_tail="\x00" * 2048)
    assert len(encode(State(seq=1, exits=(worst,) * 6))) < MAX_FRAME
    assert len(encode(State(seq=1, exits=(dataclasses.replace(worst, log_tail="\x1b" * 341),) * 8))) < MAX_FRAME


def test_a_token_is_in_no_repr() -> None:
    join = Join(1, "a/b", "u", 0, "w", "boot", "hush", "h", 1, State(seq=0))
    assert "hush" not in repr(join) and b"hush" in encode(join)
