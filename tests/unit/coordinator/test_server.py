"""The coordinator's own patience: the server inside the test's loop, with short times; and its process's end."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lepton_operator import clock
from lepton_operator.coordinator import messages, server, sessions
from lepton_operator.coordinator.link import CoordinatorLink
from lepton_trainer.protocol import messages as m
from simulated_agent import SimulatedAgent
from unit.coordinator.orders import JOB, group

TIMEOUT = 10.0


class InProcess:
    """A server in this loop; `told` is what it tells its operator."""

    def __init__(self) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self._theirs = theirs
        self.told: list[Any] = []
        self._news = asyncio.Event()
        self._server = server.Server(listener)
        self._listener = listener

    async def start(self) -> None:
        self._task = asyncio.create_task(self._server.run(self._theirs))
        self._reader, self._writer = await asyncio.open_unix_connection(sock=self._ours)
        self._reading = asyncio.create_task(self._read())
        self.tell(messages.Configure(), messages.SetGroup(group(2)), messages.Lead(clock.mono() + 3600))

    async def _read(self) -> None:
        decoder = messages.operator_decoder()
        while data := await self._reader.read(65536):
            self.told.extend(decoder.feed(data))
            self._news.set()

    def tell(self, *words: Any) -> None:
        self._writer.write(b"".join(map(messages.frame, words)))

    async def until(self, condition: Callable[[], Any]) -> None:
        async with asyncio.timeout(TIMEOUT):
            while not condition():
                self._news.clear()
                await self._news.wait()

    def said(self, words: str) -> list[str]:
        return [message.text for message in self.told if isinstance(message, messages.Said) and words in message.text]

    async def stop(self) -> None:
        self._writer.close()
        await asyncio.wait_for(self._task, TIMEOUT)
        self._reading.cancel()
        self._listener.close()


@pytest.fixture
async def coordinator(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[InProcess]:
    for name, value in {"JOIN_SECONDS": 0.2, "BEAT_SECONDS": 0.2, "ROUND_SECONDS": 0.02, "JOINS_AT_ONCE": 3, "QUEUED_FROM": 3}.items():
        monkeypatch.setattr(server, name, value)
    monkeypatch.setattr(sessions, "STUCK_SECONDS", 0.2)
    running = InProcess()
    await running.start()
    yield running
    await running.stop()


async def test_a_peer_that_says_nothing_is_closed_and_said(coordinator: InProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", coordinator.port)
    began = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        assert await asyncio.wait_for(reader.read(), TIMEOUT) == b""
    assert time.monotonic() - began >= 0.15
    await coordinator.until(lambda: coordinator.said("did not join"))
    writer.close()


async def test_half_a_message_is_as_good_as_none(coordinator: InProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", coordinator.port)
    writer.write(b'\x00\x00\x01\x00{"type":')
    with pytest.raises((ConnectionResetError, EOFError, asyncio.IncompleteReadError)):
        await asyncio.wait_for(reader.readexactly(1), TIMEOUT)
    writer.close()


async def test_an_agent_that_has_joined_may_be_silent_and_hears_beats(coordinator: InProcess) -> None:
    agent = await SimulatedAgent().connect(coordinator.port)
    await agent.until(lambda a: sum(isinstance(message, m.Beat) for message in a.heard) >= 4)
    assert not agent.closed


async def test_an_agent_whose_token_was_still_under_review_does_not_join_one_that_leads_no_more(coordinator: InProcess) -> None:
    """It would hear beats, and so never look for the new leader."""
    coordinator.tell(messages.Configure(review=True), messages.SetGroup(replace(group(1), token="")))
    agent = await SimulatedAgent().connect(coordinator.port)
    await coordinator.until(lambda: any(isinstance(message, messages.Review) for message in coordinator.told))
    (asked,) = [message for message in coordinator.told if isinstance(message, messages.Review)]
    coordinator.tell(messages.Lead(0.0), messages.Reviewed(asked.id, "default", "pod-0"))
    await agent.until(lambda a: a.closed or a.order)
    assert agent.refusal is not None and agent.refusal.code == m.NOT_LEADER


async def test_silent_peers_hold_up_joins_only_until_their_patience_ends_and_that_is_told(coordinator: InProcess) -> None:
    peers = [await asyncio.open_connection("127.0.0.1", coordinator.port) for _ in range(5)]
    agent = await SimulatedAgent().connect(coordinator.port)
    await agent.until(lambda a: a.order)
    states = [message.queued for message in coordinator.told if isinstance(message, messages.Handshakes)]
    assert True in states
    await coordinator.until(lambda: [w.queued for w in coordinator.told if isinstance(w, messages.Handshakes)][-1] is False)
    for _, writer in peers:
        writer.close()


async def test_many_bad_peers_fill_no_log(coordinator: InProcess) -> None:
    for _ in range(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", coordinator.port)
        writer.write(b"\xff" * 16)
        assert b"Refused" in await asyncio.wait_for(reader.read(), TIMEOUT)
        writer.close()
    agent = await SimulatedAgent().connect(coordinator.port)
    await agent.until(lambda a: a.order)
    assert len(coordinator.said("no message of ours")) == 1


async def test_an_agent_that_does_not_read_is_cut_off_and_told_as_dropped(coordinator: InProcess) -> None:
    agent = await SimulatedAgent().connect(coordinator.port)
    await agent.until(lambda a: a.order)
    assert agent._transport is not None
    agent._transport.pause_reading()
    number = 1
    while not any(isinstance(message, messages.Dropped) for message in coordinator.told):
        coordinator.tell(messages.SetGroup(group(2, number=number, digest="x" * 60_000)))
        number += 1
        await asyncio.sleep(0.005)
        assert number < 1500
    assert coordinator.said("has not read")


async def test_an_operator_that_does_not_read_costs_progress_but_no_states(coordinator: InProcess) -> None:
    agent = await SimulatedAgent().connect(coordinator.port)
    await agent.until(lambda a: a.order)
    coordinator._server.operator_reads(False)
    agent.tell_progress(step=1, first_step=1, generation=1)
    agent.report(phase=m.FAILED)
    await coordinator.until(lambda: any(isinstance(message, messages.Reported) for message in coordinator.told))
    assert not any(isinstance(message, messages.Progressed) for message in coordinator.told)


async def test_repeated_and_overtaken_states_are_told_once(coordinator: InProcess) -> None:
    agent = await SimulatedAgent().connect(coordinator.port)
    await agent.until(lambda a: a.order)
    for seq, phase in ((5, m.PREPARED), (5, m.PREPARED), (4, m.IDLE), (6, m.RUNNING)):
        agent.send(m.State(seq=seq, phase=phase))
    await coordinator.until(lambda: any(isinstance(w, messages.Reported) and w.state.seq == 6 for w in coordinator.told))
    assert [w.state.seq for w in coordinator.told if isinstance(w, messages.Reported)] == [5, 6]


async def test_peers_that_are_gone_before_they_are_greeted_cost_no_place(coordinator: InProcess) -> None:
    for _ in range(20):
        peer = socket.create_connection(("127.0.0.1", coordinator.port))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        peer.close()  # a reset, perhaps while it queues
    agent = await SimulatedAgent().connect(coordinator.port)
    await agent.until(lambda a: a.order)


async def test_a_listeners_mistake_cuts_no_agent_off(caplog: pytest.LogCaptureFixture) -> None:
    def mistaken(job: str) -> None:
        raise KeyError(job)

    link = CoordinatorLink(listen=("127.0.0.1", 0), tls=None, on_change=mistaken)
    await link.start()
    try:
        link.lead(clock.mono() + 3600)
        link.set_group(group(2))
        agents = [await SimulatedAgent(worker=worker).connect(link.port) for worker in range(2)]
        for agent in agents:
            await agent.until(lambda a: a.order)
        link.set_group(group(2, number=1))
        await agents[1].until(lambda a: a.order.master_port)
        assert link.connected == 2 and "could not be taken" in caplog.text
    finally:
        await link.stop()


# The real process.


def test_the_process_ends_when_its_operator_does() -> None:
    listener, (ours, theirs) = socket.create_server(("127.0.0.1", 0)), socket.socketpair()
    root = Path(server.__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root.parent / 'trainer_image'}"}
    fds = (listener.fileno(), theirs.fileno())
    command = [sys.executable, "-P", "-m", "lepton_operator.coordinator.server", *map(str, fds)]
    with listener, subprocess.Popen(command, pass_fds=fds, env=environment) as process:
        theirs.close()
        ours.settimeout(TIMEOUT)
        assert b"Ready" in ours.recv(4096)
        for number in (signal.SIGTERM, signal.SIGINT):  # a terminal's Ctrl-C is the operator's to judge
            process.send_signal(number)
        ours.close()
        assert process.wait(TIMEOUT) == 0


async def test_a_coordinator_that_was_stopped_past_its_lease_publishes_nothing_when_it_wakes() -> None:
    link = CoordinatorLink(listen=("127.0.0.1", 0), tls=None, on_change=lambda job: None)
    await link.start()
    try:
        link.lead(clock.mono() + 3600)
        link.set_group(group(1))
        agent = await SimulatedAgent().connect(link.port)
        await agent.until(lambda a: a.order)
        os.kill(link.pid, signal.SIGSTOP)
        link.lead(clock.mono() + 0.1)
        link.set_group(group(1, number=1))
        await asyncio.sleep(0.15)  # the lease passes while it is stopped
        os.kill(link.pid, signal.SIGCONT)
        await agent.until(lambda a: a.leaderless)
        assert [order.generation for order in agent.orders] == [0]
        assert link.agents(JOB)[0].connected
    finally:
        await link.stop()


async def test_log_lines_of_the_process_come_out_of_the_operators_logger(caplog: pytest.LogCaptureFixture) -> None:
    changed = asyncio.Event()
    link = CoordinatorLink(listen=("127.0.0.1", 0), tls=None, on_change=lambda job: changed.set())
    await link.start()
    try:
        link.lead(clock.mono() + 3600)
        link.set_group(group(1))
        with caplog.at_level(logging.WARNING):
            refused = await SimulatedAgent(token="wrong").connect(link.port)
            await refused.until(lambda a: a.refusal)
            await (await SimulatedAgent().connect(link.port)).until(lambda a: a.order)
            await asyncio.wait_for(changed.wait(), TIMEOUT)  # told after the log line, on the same pipe
        (record,) = caplog.records
        assert "may not join" in record.message and record.__dict__["job"] == JOB
    finally:
        await link.stop()
