"""One agent as a real process, cold ranks of plain Python: orders, failures, signals, what is left behind."""

import signal
import sys
import textwrap
import time
from pathlib import Path

import pytest

from lepton_trainer.protocol import messages as m
from local.agent.coordinator_double import agents, alive, coordinator, start_agent, wait_for


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "train.py"
    path.write_text(textwrap.dedent(text))
    return [sys.executable, str(path)]


async def test_a_generation_runs_reports_and_completes(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import os, time
        from lepton_trainer.report import report
        print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"])
        for step in range(1, 21):
            report(step=step, loss=1 / step, samples=32, total_steps=20, metrics={"accuracy": step / 20})
            time.sleep(0.01)
        """,
    )
    async with coordinator() as it, agents(tmp_path, it, command, procs=2) as (agent,):
        await it.form(1, [0])
        await it.until_phase(m.SUCCEEDED, 0)
        await it.until(lambda: it.peers[0].progress.step == 20)
        progress = it.peers[0].progress
        assert (progress.steps_total, progress.samples_total, progress.loss) == (20, 640.0, repr(1 / 20))
        assert progress.metrics == {"accuracy": "1.0"} and progress.reported
        it.order(0, generation=1, shutdown=m.COMPLETE)
        assert await agent.ended() == 0
        assert "[rank 0] rank 0 of 2" in agent.output() and "[rank 1] rank 1 of 2" in agent.output()
        assert agent.result()["verdict"] == m.COMPLETE and agent.result()["progress"]["step"] == 20


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("how", "code", "number", "error"),
    [
        ("os.kill(os.getpid(), 9)", None, 9, "ended by SIGKILL"),
        ("os.kill(os.getpid(), 15)", None, 15, "ended by SIGTERM"),
        ("os.kill(os.getpid(), 11)", None, 11, "ended by SIGSEGV"),
        ("raise ValueError('bad label 11')", 1, None, "ValueError: bad label 11 (train.py:4)"),
        ("sys.exit('no such flag')", 1, None, "no such flag"),
    ],
)
async def test_the_first_failure_is_told_at_once_and_ends_the_others(
    tmp_path: Path, victim: int, how: str, code: int | None, number: int | None, error: str
) -> None:
    command = script(
        tmp_path,
        f"""
        import os, sys, time
        if os.environ["RANK"] == "{victim}":
            {how}
        time.sleep(60)
        """,
    )
    async with coordinator() as it, agents(tmp_path, it, command, procs=2) as (agent,):
        await it.form(1, [0])
        await it.until_phase(m.FAILED, 0)
        exits = it.peers[0].state.exits
        assert [(e.rank, e.exit_code, e.signal, e.error) for e in exits] == [(victim, code, number, error)]
        await wait_for(lambda: len(agent.processes()) == 1)
        assert alive(agent.pid)


async def test_a_higher_generation_replaces_the_processes_and_a_lower_one_is_refused(tmp_path: Path) -> None:
    command = script(tmp_path, "import time; time.sleep(60)")
    async with coordinator() as it, agents(tmp_path, it, command) as (agent,):
        await it.form(3, [0])
        first = agent.ranks[0]
        await it.form(5, [0], restarts=1)
        second = agent.ranks[0]
        assert first != second and not alive(first)
        it.order(0, **it.members(4, [0])[0])
        await it.until(lambda: it.peers[0].state.refusal)
        assert it.peers[0].state.generation == 5 and agent.ranks == {0: second}
        it.order(0, **it.members(5, [0])[0], master_port=it.peers[0].state.store_port)
        it.send(0, m.Ping(7))
        await it.until(lambda: it.peers[0].pongs)
        assert agent.ranks == {0: second}


async def test_processes_in_sessions_of_their_own_do_not_outlive_the_generation(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import subprocess, sys, time
        child = "import os, time; os.setsid() if os.fork() == 0 else None; time.sleep(60)"
        subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
        time.sleep(60)
        """,
    )
    async with coordinator() as it, agents(tmp_path, it, command) as (agent,):
        await it.form(1, [0])
        await wait_for(lambda: len(agent.processes()) == 4)
        before = set(agent.processes()) - {agent.pid}
        it.order(0, **it.members(2, [0])[0])
        await it.until_phase(m.PREPARED, 0, generation=2)
        assert not before & set(agent.processes())
        it.order(0, generation=2, shutdown=m.REMOVED)
        assert await agent.ended() == 1
        assert not agent.processes()


async def test_an_agent_killed_alone_takes_its_ranks_with_it(tmp_path: Path) -> None:
    command = script(tmp_path, "import time; time.sleep(60)")
    async with coordinator() as it, agents(tmp_path, it, command, procs=2) as (agent,):
        await it.form(1, [0])
        ranks = agent.ranks
        agent.kill()
        await wait_for(lambda: not any(alive(pid) for pid in ranks.values()), 2)


async def test_sigterm_is_told_at_once_and_the_ranks_get_it(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print("saving", flush=True), sys.exit(0)))
        print("up", flush=True)
        while True:
            time.sleep(0.05)
        """,
    )
    async with coordinator() as it, agents(tmp_path, it, command, LEPTON_GRACE_SECONDS="10") as (agent,):
        await it.form(1, [0])
        await wait_for(lambda: "up" in agent.output())
        agent.kill(signal.SIGTERM)
        await it.until(lambda: it.peers[0].state.leaving == "SIGTERM")
        assert await agent.ended() == 143
        assert "saving" in agent.output() and it.peers[0].state.phase == m.STOPPED


async def test_ranks_that_could_stop_together_get_sigterm_when_the_coordinator_goes_away_meanwhile(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import signal, sys, time
        from lepton_trainer.report import should_stop
        signal.signal(signal.SIGTERM, lambda *_: (print("saving", flush=True), sys.exit(0)))
        print("up", flush=True)
        while not should_stop():
            time.sleep(0.05)
        """,
    )
    async with coordinator() as it, agents(tmp_path, it, command, LEPTON_GRACE_SECONDS="12") as (agent,):
        await it.form(1, [0])
        await it.until(lambda: it.peers[0].state.can_stop)
        agent.kill(signal.SIGTERM)
        await it.until(lambda: it.peers[0].state.leaving == "SIGTERM")
        await it.stop()
        assert await agent.ended() == 143
        assert "saving" in agent.output()


async def test_ranks_that_the_agent_killed_have_never_succeeded(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import time
        from lepton_trainer.report import should_stop
        while not should_stop():
            time.sleep(0.05)
        """,
    )
    async with coordinator() as it, agents(tmp_path, it, command) as (agent,):
        await it.form(1, [0])
        await it.form(2, [0])
        await it.until(lambda: it.peers[0].state.can_stop)
        agent.kill(signal.SIGINT)
        await it.until(lambda: it.peers[0].state.leaving == "SIGINT")
        agent.kill(signal.SIGINT)
        assert await agent.ended() == 143
        await it.until(lambda: it.peers[0].gone)
        assert it.peers[0].state.phase == m.STOPPED
        assert m.SUCCEEDED not in {state.phase for _, _, state in it.states}


async def test_ranks_that_ignore_sigterm_are_killed_inside_the_grace_period(tmp_path: Path) -> None:
    command = script(tmp_path, "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)")
    async with coordinator() as it, agents(tmp_path, it, command, LEPTON_GRACE_SECONDS="3") as (agent,):
        await it.form(1, [0])
        await wait_for(lambda: "up" in agent.output())
        start = time.monotonic()
        agent.kill(signal.SIGTERM)
        await agent.ended()
        assert 1 < time.monotonic() - start < 3
        assert not agent.processes()


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [(["no-such-program"], 127, "was not found"), (["/etc/hostname"], 126, "cannot be executed")],
)
async def test_a_command_that_cannot_run_is_a_failure_with_a_sentence(tmp_path: Path, command: list[str], code: int, says: str) -> None:
    async with coordinator() as it, agents(tmp_path, it, command) as _:
        await it.form(1, [0])
        await it.until_phase(m.FAILED, 0)
        (exit_,) = it.peers[0].state.exits
        assert exit_.exit_code == code and says in exit_.error and not exit_.traceback


async def test_training_goes_on_without_a_coordinator_and_the_agent_comes_back_with_its_state(tmp_path: Path) -> None:
    command = script(tmp_path, "import time; time.sleep(60)")
    async with coordinator() as it, agents(tmp_path, it, command) as (agent,):
        await it.form(1, [0])
        ranks = agent.ranks
        port = it.port
        await it.stop()
        await it.until(lambda: it.peers[0].gone)
        await it.start(port)
        await it.until(lambda: it.peers[0].connections == 2)
        assert it.joins[-1].state.phase == m.RUNNING and it.joins[-1].state.generation == 1
        assert agent.ranks == ranks and it.joins[-1].boot == it.joins[0].boot


async def test_a_final_refusal_ends_the_agent_and_says_why(tmp_path: Path) -> None:
    command = script(tmp_path, "import time; time.sleep(60)")
    async with coordinator() as it, agents(tmp_path, it, command) as (agent,):
        await it.form(1, [0])
        it.send(0, m.Refused(m.SUPERSEDED, "another pod has this index", final=True))
        assert await agent.ended() == 1
        assert "another pod has this index" in agent.result()["reason"] and not agent.processes()


async def test_an_agent_leaves_a_silent_coordinator_and_joins_again(tmp_path: Path) -> None:
    command = script(tmp_path, "import time; time.sleep(60)")
    async with coordinator() as it:
        it.welcome, it.beating = m.Welcome(m.VERSION, silence_seconds=0.4), False
        async with agents(tmp_path, it, command) as _:
            await it.until(lambda: it.peers[0].connections >= 2, 3)


async def test_orders_to_prepare_and_to_start_in_one_packet_start(tmp_path: Path) -> None:
    command = script(tmp_path, "import time; time.sleep(60)")
    async with coordinator() as it, agents(tmp_path, it, command) as (agent,):
        fields = it.members(1, [0])[0]
        it.order(0, **fields)
        it.order(0, **fields, master_port=4242)
        await it.until_phase(m.RUNNING, 0)
        assert list(agent.ranks) == [0]


async def test_a_flood_without_line_ends_and_a_line_of_megabytes_cost_the_agent_little_memory(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import sys, time
        for n in range(400):
            sys.stdout.write(f"\\r{n} of 400")
            sys.stdout.flush()
            time.sleep(0.005)
        sys.stdout.buffer.write(b"x" * (4 << 20) + b"caf\\xe9 \\x00 \\x1b[31mthe end\\x1b[0m\\n")
        sys.exit(1)
        """,
    )
    async with coordinator() as it, agents(tmp_path, it, command) as (agent,):
        before = peak_memory(agent.pid)
        await it.form(1, [0])
        await it.until_phase(m.FAILED, 0)
        (exit_,) = it.peers[0].state.exits
        assert exit_.log_tail.endswith("caf\ufffd  the end") and len(exit_.log_tail.encode()) <= 2048
        assert peak_memory(agent.pid) - before < 20 << 10


def peak_memory(pid: int) -> int:
    """KiB."""
    return int(Path(f"/proc/{pid}/status").read_text().split("VmHWM:")[1].split()[0])


async def test_numbers_are_taken_out_of_the_log_of_the_lowest_rank(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import os, time
        for step in range(1, 4):
            print(f"step {step} loss {step * (1 + int(os.environ['RANK']))}", flush=True)
        time.sleep(60)
        """,
    )
    patterns = '[{"name": "step", "pattern": "step (\\\\d+)"}, {"name": "loss", "pattern": "loss ([0-9.]+)"}]'
    async with coordinator() as it, agents(tmp_path, it, command, procs=2, LEPTON_METRICS_FROM_LOGS=patterns) as _:
        await it.form(1, [0])
        await it.until(lambda: it.peers[0].progress.step == 3)
        assert it.peers[0].progress.loss == "3.0" and not it.peers[0].progress.reported


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("LEPTON_COORDINATOR", "", "LEPTON_COORDINATOR is not set"),
        ("LEPTON_PROCS_PER_WORKER", "many", "LEPTON_PROCS_PER_WORKER is 'many'"),
        ("LEPTON_METRICS_FROM_LOGS", '[{"name": "loss", "pattern": "(a+)+"}]', "repeats a repeat"),
    ],
)
async def test_wrong_settings_end_the_agent_with_a_sentence(tmp_path: Path, variable: str, value: str, says: str) -> None:
    async with coordinator() as it:
        agent = await start_agent(tmp_path, it, ["true"], **{variable: value})
        assert await agent.ended() == 2
        assert says in agent.output() and "Traceback" not in agent.output()


async def test_metrics_and_health_are_served(tmp_path: Path) -> None:
    command = script(
        tmp_path,
        """
        import time
        from lepton_trainer.report import report
        for step in range(1, 4):
            report(step=step, loss=float("nan") if step == 2 else 0.5, samples=10, tokens=100)
        time.sleep(60)
        """,
    )
    async with coordinator() as it, agents(tmp_path, it, command) as (agent,):
        await it.form(1, [0])
        await it.until(lambda: it.peers[0].progress.step == 3)
        port = int((agent.run_dir / "metrics-port").read_text())
        assert it.joins[0].metrics_port == port
        text = await fetch(port, "/metrics")
        labels = 'namespace="default",job_name="job",worker="0"'
        for line in (
            f"lepton_train_loss{{{labels}}} 0.5",
            f"lepton_train_steps_total{{{labels}}} 3.0",
            f"lepton_train_samples_total{{{labels}}} 30.0",
            f"lepton_train_tokens_total{{{labels}}} 300.0",
            f"lepton_train_nonfinite_loss_total{{{labels}}} 1.0",
            f"lepton_train_step_seconds_count{{{labels}}} 2.0",
            f'lepton_train_process_up{{{labels},rank="0"}} 1.0',
            f'lepton_train_process_starts_total{{{labels},kind="cold"}} 1.0',
        ):
            assert line in text.splitlines()
        assert await fetch(port, "/healthz") == "ok\n"


async def fetch(port: int, path: str) -> str:
    import asyncio

    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert head.startswith(b"HTTP/1.1 200"), head
    return body.decode()


async def test_prepare_and_start_in_one_read_start_the_processes(tmp_path: Path) -> None:
    command = script(tmp_path, "import time; time.sleep(60)")
    async with coordinator() as it, agents(tmp_path, it, command) as (agent,):
        await it.until(lambda: 0 in it.peers)
        seat = {"generation": 1, "group_rank": 1, "group_size": 2, "rank_offset": 1, "world_size": 2, "master_host": "127.0.0.1"}
        it.order(0, **seat)
        it.order(0, **seat, master_port=9)
        await it.until_phase(m.RUNNING, 0, generation=1)
        assert list(agent.ranks) == [1]
