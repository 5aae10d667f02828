"""The operator's link with a real coordinator process and simulated agents, over loopback."""

import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lepton_operator import clock
from lepton_operator.coordinator import link
from lepton_operator.coordinator.link import CoordinatorLink
from lepton_trainer.protocol import messages as m
from simulated_agent import STORE_PORT, SimulatedAgent
from unit.coordinator.operator_side import Operator
from unit.coordinator.orders import JOB, group


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    operator = Operator()
    await operator.link.start()
    operator.link.lead(clock.mono() + 3600)
    yield operator
    await operator.link.stop()


async def test_a_generation_is_prepared_then_started_with_the_port_of_rank_zero(operator: Operator) -> None:
    operator.link.set_group(group(2))
    agents = [await operator.join(index) for index in range(2)]
    operator.link.set_group(group(2, number=1))
    for agent in agents:
        await agent.until(lambda a: a.order.master_port)
        assert [(o.generation, o.master_port) for o in agent.orders] == [(0, 0), (1, 0), (1, STORE_PORT + 1)]
    assert [agent.order.group_rank for agent in agents if agent.order] == [0, 1]
    await operator.until(lambda: all(a.state.phase == m.RUNNING for a in operator.link.agents(JOB)))


async def test_a_reconnecting_agent_gets_its_order_at_once_and_keeps_when_it_joined(operator: Operator) -> None:
    operator.link.set_group(group(1, number=1))
    first = await operator.join()
    await operator.until(lambda: operator.agent("pod-0"))
    joined = operator.agent("pod-0").joined
    first.leave()
    await operator.until(lambda: not operator.agent("pod-0").connected)
    assert operator.link.drops_recent(60) == [(JOB, "pod-0")]
    again = await operator.join()
    assert again.order is not None and again.order.generation == 1
    await operator.until(lambda: operator.agent("pod-0").connected)
    assert operator.agent("pod-0").joined == joined


async def test_the_same_boot_supersedes_its_older_connection_without_a_drop(operator: Operator) -> None:
    operator.link.set_group(group(1))
    older = await operator.join()
    await operator.join()
    await older.until(lambda a: a.closed)
    assert older.refusal is not None and (older.refusal.code, older.refusal.final) == (m.SUPERSEDED, True)
    assert [agent.connected for agent in operator.link.agents(JOB)] == [True]
    assert operator.link.drops_recent(60) == []


async def test_another_boot_leaves_both_facts_until_the_older_is_forgotten(operator: Operator) -> None:
    operator.link.set_group(group(1))
    await operator.join()
    await operator.join(boot="b")
    await operator.until(lambda: operator.agent("pod-0", "b"))
    assert [(a.boot, a.connected) for a in operator.link.agents(JOB)] == [("a", False), ("b", True)]
    operator.link.forget(JOB, "pod-0", "a")
    assert [a.boot for a in operator.link.agents(JOB)] == ["b"]


async def test_shutdown_verdicts_reach_their_workers(operator: Operator) -> None:
    operator.link.set_group(group(2))
    agents = [await operator.join(index) for index in range(2)]
    operator.link.set_group(group(2, shutdown={"pod-1": m.REMOVED}, grace_seconds=7.0))
    await agents[1].until(lambda a: a.order.shutdown)
    assert agents[1].order is not None and (agents[1].order.shutdown, agents[1].order.grace_seconds) == (m.REMOVED, 7.0)
    assert agents[0].order is not None and agents[0].order.shutdown == ""


async def test_progress_is_stored_silently_but_for_the_first_step(operator: Operator) -> None:
    operator.link.set_group(group(1, number=1))
    agent = await operator.join()
    await operator.until(lambda: operator.agent("pod-0") and operator.agent("pod-0").state.phase == m.RUNNING)
    operator.changes.clear()
    agent.tell_progress(generation=1, step=1, first_step=1)
    await operator.until(lambda: operator.changes)
    agent.tell_progress(step=2, step_age=0.0)
    agent.report(phase=m.FAILED)  # comes after it: what it changes tells that the progress has arrived
    await operator.until(lambda: operator.agent("pod-0").failed_order)
    assert operator.agent("pod-0").progress.step == 2
    assert operator.changes == [JOB, JOB]
    assert operator.agent("pod-0").stepped > 0


async def test_a_probe_brings_fresh_progress(operator: Operator) -> None:
    operator.link.set_group(group(1))
    agent = await operator.join()
    agent.progress = m.Progress(step=5, first_step=5, generation=1)
    operator.link.probe(JOB)
    await operator.until(lambda: operator.agent("pod-0").progress.step == 5)


async def test_the_first_failure_to_arrive_has_the_lowest_number(operator: Operator) -> None:
    operator.link.set_group(group(2, number=1))
    agents = [await operator.join(index) for index in range(2)]
    for agent in agents:
        await agent.until(lambda a: a.state.phase == m.RUNNING)
    agents[1].report(phase=m.FAILED)
    await operator.until(lambda: operator.agent("pod-1").failed_order)
    agents[0].report(phase=m.FAILED)
    await operator.until(lambda: operator.agent("pod-0").failed_order)
    assert operator.agent("pod-1").failed_order < operator.agent("pod-0").failed_order


async def test_past_its_lease_it_publishes_nothing_until_it_leads_again(operator: Operator) -> None:
    operator.link.set_group(group(1))
    agent = await operator.join()
    operator.link.lead(clock.mono() + 0.01)
    await agent.until(lambda a: a.leaderless)
    operator.link.set_group(group(1, number=1))
    late = await SimulatedAgent().connect(operator.link.port)
    await late.until(lambda a: a.refusal)
    assert late.refusal is not None and late.refusal.code == m.NOT_LEADER
    assert agent.order is not None and agent.order.generation == 0 and not agent.closed
    operator.link.lead(clock.mono() + 3600)
    await agent.until(lambda a: a.order.generation == 1)


async def test_when_another_leads_the_agents_are_let_go(operator: Operator) -> None:
    operator.link.set_group(group(1))
    agent = await operator.join()
    operator.link.lead(0)
    await agent.until(lambda a: a.closed)
    assert agent.leaderless


async def test_a_coordinator_that_is_killed_comes_back_on_the_same_port_and_goes_on(operator: Operator) -> None:
    operator.link.set_group(group(1, number=1))
    agent = await operator.join()
    await operator.until(lambda: operator.agent("pod-0") and operator.agent("pod-0").state.phase == m.RUNNING)
    before = clock.mono()
    os.kill(operator.link.pid, signal.SIGKILL)
    await operator.until(lambda: not operator.agent("pod-0").connected)
    again = SimulatedAgent()
    again.state = agent.state
    await again.connect(operator.link.port)
    await again.until(lambda a: a.order)
    await operator.until(lambda: operator.agent("pod-0").connected)
    assert again.order is not None and again.order.generation == 1
    assert operator.link.settled > before


async def test_a_coordinator_that_cannot_be_started_again_at_once_is_tried_until_it_can(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, faults = link._run, [OSError("no process is left"), RuntimeError("can't start new thread")]

    def run(*arguments: Any) -> Any:
        if faults:
            raise faults.pop(0)
        return real(*arguments)

    monkeypatch.setattr(link, "_run", run)
    monkeypatch.setattr(link, "RESTART_SECONDS", (0.01,))
    operator.link.set_group(group(1))
    await operator.join()
    os.kill(operator.link.pid, signal.SIGKILL)
    await operator.until(lambda: not operator.agent("pod-0").connected)
    await operator.join()
    assert not faults


async def test_workers_that_are_none_any_more_are_let_go(operator: Operator) -> None:
    operator.link.set_group(group(2))
    agent = await operator.join(1)
    operator.link.set_group(group(1))
    await agent.until(lambda a: a.closed)
    assert agent.refusal is not None and agent.refusal.code == m.UNKNOWN_WORKER


async def test_garbage_from_a_joined_agent_is_a_drop_of_that_agent(operator: Operator) -> None:
    operator.link.set_group(group(2))
    agents = [await operator.join(index) for index in range(2)]
    agents[0].write(b"\xff" * 8)
    await operator.until(lambda: operator.agent("pod-0") and not operator.agent("pod-0").connected)
    assert operator.agent("pod-1").connected and not agents[1].closed


async def test_plain_connections_are_served_on_loopback_only() -> None:
    with pytest.raises(ValueError, match="loopback"):
        CoordinatorLink(listen=("0.0.0.0", 0), tls=None, on_change=lambda job: None)
