"""Two agents, real torch, real gloo: a generation that computes, loses a rank and computes again; warm and cold starts alike."""

import os
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from lepton_trainer.protocol import messages as m
from local.agent.coordinator_double import agents, coordinator

ALL_REDUCE = """
import os, time
import torch
import torch.distributed as dist
from lepton_trainer.report import report, should_stop
dist.init_process_group("gloo")
value = torch.ones(4) * (dist.get_rank() + 1)
dist.all_reduce(value)
print("sum", value[0].item(), flush=True)
step = 0
while True:
    step += 1
    one = torch.ones(1)
    dist.all_reduce(one)
    report(step=step, loss=one.item(), samples=8)
    if should_stop():
        print("stopped at", step, flush=True)
        break
    time.sleep(0.005)
dist.destroy_process_group()
"""


def script(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "train.py").write_text(textwrap.dedent(text))
    return [sys.executable, "train.py"]


@pytest.mark.parametrize("warm", ["1", "0"])
async def test_a_group_computes_loses_a_rank_computes_again_and_stops_at_one_step(tmp_path: Path, warm: str) -> None:
    command = script(tmp_path, ALL_REDUCE)
    async with coordinator() as it, agents(tmp_path, it, command, count=2, LEPTON_WARM_START=warm) as (first, second):
        await it.form(1, [0, 1], seconds=40)
        await it.until(lambda: all(p.progress.step for p in it.peers.values()), 40)
        assert [p.state.cold_start for p in it.peers.values()] == [("" if warm == "1" else "switched off by LEPTON_WARM_START=0")] * 2
        os.kill(first.ranks[0], signal.SIGKILL)
        await it.until_phase(m.FAILED, 0, 1)
        assert (it.peers[0].state.exits[0].signal, it.peers[0].state.exits[0].witness) == (9, False)
        witness = it.peers[1].state.exits[0]
        assert witness.witness and witness.error.startswith("RuntimeError: ") and witness.error.endswith("(train.py:14)")
        orders = await it.form(2, [0, 1], restarts=1, seconds=40)
        await it.until(lambda: all(p.progress.generation == 2 and p.progress.step and p.state.can_stop for p in it.peers.values()), 40)
        call = max(p.progress.step or 0 for p in it.peers.values()) + 40
        for committed in (False, True):
            for worker in (0, 1):
                it.order(worker, **orders[worker], stop=m.StopOrder(1, call, committed))
            await it.until(lambda: all(p.state.stop and p.state.stop.armed for p in it.peers.values()))
        await it.until_phase(m.STOPPED, 0, 1)
        assert [agent.output().count(f"stopped at {call}\n") for agent in (first, second)] == [1, 1]
        assert [agent.output().count("sum 3.0") for agent in (first, second)] == [2, 2]
