"""The termination message, and addresses: what is wrong with them is named."""

import pytest

from lepton_trainer.protocol import messages as m
from lepton_trainer.protocol.frames import ProtocolError, decode, split_host_port
from lepton_trainer.protocol.result import LIMIT, Result, dump, load


def test_deeply_nested_json_is_refused() -> None:
    with pytest.raises(ProtocolError, match="not JSON"):
        decode(b"[" * 100_000)


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
