"""The framing: whatever arrives, however it is cut, becomes a message or a `ProtocolError`."""

import dataclasses
import json
import struct
from typing import Any, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_trainer.protocol import messages as m
from lepton_trainer.protocol.frames import MAX_FRAME, Decoder, ProtocolError, decode, encode, split_host_port
from lepton_trainer.protocol.result import LIMIT, Result, dump, load

TEXT = st.text(max_size=30)
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def of_hint(hint: Any) -> st.SearchStrategy[Any]:
    """Values of one field's type."""
    simple = {int: st.integers(0, 2**31), str: TEXT, float: FINITE, bool: st.booleans()}
    if hint in simple:
        return simple[hint]
    if dataclasses.is_dataclass(hint):
        return of_message(hint)
    arguments = hint.__args__
    if type(None) in arguments:
        return st.none() | of_hint(next(a for a in arguments if a is not type(None)))
    if hint.__origin__ is tuple:
        return st.lists(of_hint(arguments[0]), max_size=3).map(tuple)
    return st.dictionaries(TEXT, of_hint(arguments[1]), max_size=3)


def of_message(kind: Any) -> st.SearchStrategy[Any]:
    hints = get_type_hints(kind)
    return st.builds(kind, **{entry.name: of_hint(hints[entry.name]) for entry in dataclasses.fields(kind)})


@pytest.mark.parametrize("kind", m.MESSAGES)
def test_every_message_survives_the_wire_however_it_is_cut(kind: Any) -> None:
    @settings(max_examples=25)
    @given(st.lists(of_message(kind), min_size=1, max_size=2), st.integers(1, 50))
    def check(sent: list[Any], size: int) -> None:
        stream = b"".join(encode(message) for message in sent)
        decoder = Decoder()
        got = [message for at in range(0, len(stream), size) for message in decoder.feed(stream[at : at + size])]
        assert got == sent

    check()


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_raises_nothing_but_a_protocol_error(chunks: list[bytes]) -> None:
    decoder = Decoder()
    for chunk in chunks:
        try:
            list(decoder.feed(chunk))
        except ProtocolError:
            return


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT
JSON = LEAVES | st.lists(LEAVES, max_size=2) | st.dictionaries(TEXT, LEAVES, max_size=2)


@given(st.sampled_from([kind.__name__ for kind in m.MESSAGES] + ["Unknown"]), st.dictionaries(TEXT, JSON, max_size=3), st.data())
def test_wrong_fields_raise_nothing_but_a_protocol_error(kind: str, extra: dict[str, Any], data: st.DataObject) -> None:
    fields = [entry.name for entry in dataclasses.fields(getattr(m, kind))] if kind not in ("Unknown", "Beat") else ["field"]
    wrong = data.draw(st.lists(st.sampled_from(fields), max_size=3))
    body = {**extra, **{name: data.draw(JSON) for name in wrong}, "type": kind}
    try:
        message = decode(json.dumps(body).encode())
    except ProtocolError as error:
        assert str(error)
    else:
        assert message is None if kind == "Unknown" else type(message).__name__ == kind


@given(of_message(m.State), st.data())
def test_a_damaged_frame_raises_nothing_but_a_protocol_error(state: m.State, data: st.DataObject) -> None:
    frame = bytearray(encode(state))
    at = data.draw(st.integers(0, len(frame) - 1))
    frame[at] = data.draw(st.integers(0, 255))
    try:
        list(Decoder().feed(bytes(frame[: data.draw(st.integers(0, len(frame)))])))
    except ProtocolError as error:
        assert str(error)


def test_an_oversized_message_is_refused_by_its_header_alone() -> None:
    with pytest.raises(ProtocolError, match="exceeds the limit"):
        list(Decoder().feed(struct.pack(">I", MAX_FRAME + 1)))


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        decode(b"[" * 100_000)


def test_the_worst_state_fits_a_frame() -> None:
    worst = m.ProcessExit(rank=1, local_rank=1, error="\x01" * 600, traceback="\x01" * 4096, log_tail="\x01" * 2048)
    assert len(encode(m.State(seq=1, exits=(worst,) * 5))) < MAX_FRAME


def test_fields_of_a_newer_version_are_ignored_and_unknown_messages_too() -> None:
    assert decode(b'{"type":"Ping","id":3,"colour":"red"}') == m.Ping(3)
    assert decode(b'{"type":"Later"}') is None


@pytest.mark.parametrize("address", ["host", "host:", ":1", "host:0", "host:65536", "host:a"])
def test_a_wrong_address_is_named(address: str) -> None:
    with pytest.raises(ValueError, match="is not host:port"):
        split_host_port(address)


def test_a_result_fits_a_termination_message_and_comes_back() -> None:
    exit_ = m.ProcessExit(rank=3, local_rank=1, exit_code=1, error="ValueError: é", traceback="é" * 4096, log_tail="日" * 700)
    text = dump(Result(m.JOB_FAILED, 4, "why", (exit_,) * 8, m.Progress(step=7, metrics={"accuracy": "0.9"})))
    assert len(text.encode()) <= LIMIT
    result = load(text)
    assert (result.verdict, result.generation, result.exits[0].rank, result.progress.step) == (m.JOB_FAILED, 4, 3, 7)
    assert result.exits[0].error.startswith("ValueError: é")


@pytest.mark.parametrize("text", ["", "Killed", "[]", '{"verdict":1}', "{}"])
def test_what_is_no_result_raises_a_protocol_error(text: str) -> None:
    with pytest.raises(ProtocolError):
        load(text)
