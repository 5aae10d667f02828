"""What an agent that has to go does with orders that were under way, and that it ends inside its pod's grace period whoever says so."""

import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lepton_trainer.protocol import messages as m
from local.agent.coordinator_double import AgentProcess, Coordinator, agents, coordinator, wait_for

STUBBORN = """
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path("ready").touch()
time.sleep(60)
"""


@asynccontextmanager
async def stubborn(tmp_path: Path, grace_seconds: int) -> AsyncIterator[tuple[Coordinator, AgentProcess]]:
    """An agent whose one rank runs and ignores SIGTERM."""
    command = [sys.executable, "-c", STUBBORN]
    async with coordinator() as it, agents(tmp_path, it, command, LEPTON_GRACE_SECONDS=str(grace_seconds)) as (agent,):
        await it.form(1, [0])
        await wait_for((tmp_path / "ready").exists)
        yield it, agent


async def test_ranks_get_no_more_time_than_the_pods_grace_period_however_much_the_order_allows(tmp_path: Path) -> None:
    """The pod of a worker that is scaled away is deleted at the same moment: what is left after it is no result."""
    async with stubborn(tmp_path, 2) as (it, agent):
        began = time.monotonic()
        it.order(0, shutdown=m.REMOVED, grace_seconds=30.0)
        assert await agent.ended() == 1
        assert time.monotonic() - began < 4.0
        assert agent.result()["verdict"] == m.REMOVED and not agent.processes()


async def test_a_verdict_that_comes_late_in_the_grace_period_has_only_what_is_left_of_it(tmp_path: Path) -> None:
    async with stubborn(tmp_path, 5) as (it, agent):
        began = time.monotonic()
        agent.kill(signal.SIGTERM)
        await it.until(lambda: it.peers[0].state.leaving)
        await wait_for(lambda: time.monotonic() - began > 1.5)
        it.order(0, shutdown=m.REMOVED, grace_seconds=30.0)
        await agent.ended()
        assert time.monotonic() - began < 4.5
        assert agent.result()["verdict"] == m.REMOVED


async def test_an_agent_that_leaves_follows_no_new_generation_and_ends_the_older_one(tmp_path: Path) -> None:
    """The order may have been under way when it was told to go."""
    async with stubborn(tmp_path, 30) as (it, agent):
        agent.kill(signal.SIGTERM)
        await it.until(lambda: it.peers[0].state.leaving)
        began = time.monotonic()
        for fields in (it.members(2, [0])[0], it.members(2, [0])[0] | {"master_port": 9}):
            it.order(0, **fields)
        assert await agent.ended() == 143
        assert time.monotonic() - began < 10.0, "nothing of it had to be waited for"
        told = [state for _, _, state in it.states]
        assert {state.generation for state in told} <= {0, 1} and told[-1].highest == 2
        assert any("generation 2 goes on without it" in state.refusal for state in told)
