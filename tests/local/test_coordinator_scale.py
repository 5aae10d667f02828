"""Two thousand agents on one coordinator: real TLS sockets, real RS256 tokens. How fast is `bench/coordinator.py`'s matter."""

from pathlib import Path

from bench.coordinator import JOB, Bench
from lepton_trainer.protocol.messages import RUNNING

AGENTS = 2000


async def test_two_thousand_agents_join_and_run_a_generation(tmp_path: Path) -> None:
    async with Bench(AGENTS, tmp_path) as bench:
        before = bench.memory()
        await bench.join()
        await bench.generation(RUNNING)
        agents = bench.link.agents(JOB)
        assert sorted(agent.worker for agent in agents) == list(range(AGENTS))
        assert all(agent.connected and agent.state.generation == 1 for agent in agents)
        assert bench.link.drops_recent(3600) == []
        assert (bench.memory() - before) / AGENTS < 64 * 1024  # 27 KiB measured; a stream and tasks for each would take ten times that
