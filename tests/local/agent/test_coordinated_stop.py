"""A coordinated stop with all its real parts: coordinator process, agents, ranks in lock step. Each rank must stop at the same call."""

import asyncio
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lepton_operator import clock
from lepton_operator.coordinator.link import CoordinatorLink
from lepton_operator.worker import GroupOrder, MemberOrder
from lepton_trainer.protocol import messages as m
from local.agent.coordinator_double import AgentProcess, start_agent, wait_for

JOB = "default/job"
WORKERS = 3
LOCK_STEP = """
import os, sys, time
from pathlib import Path
from lepton_trainer.report import should_stop

rank, world, folder, pause = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), Path(sys.argv[1]), float(sys.argv[2])


def all_reduce(step):
    # What a collective does to ranks: nobody leaves step n before everybody has entered it.
    (folder / f"{rank}.new").write_text(str(step))
    (folder / f"{rank}.new").rename(folder / str(rank))
    for other in range(world):
        while not (folder / str(other)).exists() or int((folder / str(other)).read_text()) < step:
            time.sleep(0.0005)


step = 0
while not should_stop():
    step += 1
    all_reduce(step)
    time.sleep(pause * (rank + 1))
print("stopped after", step, flush=True)
"""


@pytest.mark.parametrize("pause", [0.0, 0.05], ids=["fast steps", "slow steps"])
async def test_ranks_in_lock_step_all_stop_at_the_same_call(tmp_path: Path, pause: float) -> None:
    (tmp_path / "train.py").write_text(LOCK_STEP)
    (tmp_path / "token").write_text("secret")
    (tmp_path / "steps").mkdir()
    changed = asyncio.Event()
    link = CoordinatorLink(listen=("127.0.0.1", 0), tls=None, on_change=lambda job: changed.set())

    async def until(phase: str) -> None:
        async with asyncio.timeout(20):
            while True:
                states = [agent.state for agent in link.agents(JOB)]
                if len(states) == WORKERS and {state.phase for state in states} == {phase}:
                    return
                changed.clear()
                await changed.wait()

    await link.start()
    link.lead(clock.mono() + 3600)
    order = GroupOrder(JOB, "job-uid", {f"uid-{i}": i for i in range(WORKERS)}, token="secret")
    link.set_group(order)
    started: list[AgentProcess] = []
    try:
        command = [sys.executable, str(tmp_path / "train.py"), str(tmp_path / "steps"), str(pause)]
        for worker in range(WORKERS):
            started.append(await start_agent(tmp_path, link, command, worker, LEPTON_TOKEN_FILE=str(tmp_path / "token")))  # type: ignore[arg-type]
        await until(m.IDLE)
        boots = {agent.uid: agent.boot for agent in link.agents(JOB)}
        members = tuple(MemberOrder(f"uid-{i}", boots[f"uid-{i}"], i, i, i) for i in range(WORKERS))
        order = replace(order, number=1, members=members, world_size=WORKERS, master_host="127.0.0.1", digest="d")
        link.set_group(order)
        await until(m.RUNNING)
        await wait_for(lambda: all(agent.state.can_stop for agent in link.agents(JOB)))
        link.set_group(replace(order, stop_requested=True))
        await until(m.STOPPED)
        stopped = [re.findall(r"stopped after (\d+)", agent.output()) for agent in started]
        assert stopped[0] and stopped == [stopped[0]] * WORKERS
        assert [len(agent.state.exits) for agent in link.agents(JOB)] == [0] * WORKERS
    finally:
        for agent in started:
            if agent.process.returncode is None:
                agent.kill()
                await agent.process.wait()
        await link.stop()
