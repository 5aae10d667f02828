"""Peers that may not join, and peers that are no agents: one coordinator process serves all these tests, undisturbed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from lepton_operator import clock
from lepton_trainer.protocol import messages as m
from lepton_trainer.protocol.frames import MAX_FRAME
from simulated_agent import SimulatedAgent
from unit.coordinator.operator_side import TIMEOUT, Operator
from unit.coordinator.orders import JOB, group

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def operator() -> AsyncIterator[Operator]:
    operator = Operator()
    await operator.link.start()
    operator.link.lead(clock.mono() + 3600)
    yield operator
    await operator.link.stop()


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"token": "wrong"}, m.BAD_TOKEN),
        ({"worker": 1, "uid": "pod-0"}, m.UNKNOWN_WORKER),
        ({"uid": "pod-9"}, m.UNKNOWN_WORKER),
        ({"job": "default/other"}, m.UNKNOWN_WORKER),
        ({"job_uid": "job-0"}, m.UNKNOWN_WORKER),
        ({"version": 0}, m.BAD_VERSION),
        ({"version": m.VERSION + 2}, m.BAD_VERSION),
    ],
)
async def test_a_join_that_proves_nothing_is_refused_with_a_sentence(operator: Operator, changes: dict[str, Any], code: str) -> None:
    operator.link.set_group(group(1))
    agent = await SimulatedAgent(**changes).connect(operator.link.port)
    await agent.until(lambda a: a.closed)
    assert agent.refusal is not None and agent.refusal.code == code
    assert len(agent.refusal.message.split()) >= 5 and "secret" not in agent.refusal.message
    assert operator.link.agents(JOB) == []


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        (MAX_FRAME + 1).to_bytes(4, "big"),
        b"\x00\x00\x00\x02[]",
        b"\x00\x00\x00\x10" + b"\xff" * 16,
        b'\x00\x00\x00\x0f{"type":"Join"}',
        b'\x00\x00\x00\x0f{"type":"Beat"}',
    ],
)
async def test_garbage_closes_its_own_connection_only(operator: Operator, junk: bytes) -> None:
    operator.link.set_group(group(1))
    agent = await operator.join()
    reader, writer = await asyncio.open_connection("127.0.0.1", operator.link.port)
    writer.write(junk)
    async with asyncio.timeout(TIMEOUT):
        assert b"Refused" in await reader.read()
    writer.close()
    operator.link.set_group(group(1, number=1))
    await agent.until(lambda a: a.order.generation == 1)
    assert not agent.closed
