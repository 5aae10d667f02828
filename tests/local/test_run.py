"""`lepton run` and its siblings as a user meets them: verdicts, interruptions, changes, and what is wrong said in a sentence."""

import itertools
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from lepton_operator.local.processes import identify
from local.lepton_run import CLI, SCRIPTS, LocalJob, local_job, manifest, sample, until

PLAIN = str(SCRIPTS / "plain.py")
Make = Callable[..., LocalJob]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A job of cold starts: `make("exit=3", replicas=2, ...)` runs scripts/plain.py with these words; `command=` runs another command."""
    with ExitStack() as stack:

        def new(*words: str, others: tuple[dict[str, Any], ...] = (), **spec: Any) -> LocalJob:
            spec = {"replicas": 1, "recovery": {"maxRestarts": 0}, **spec}
            body = manifest("plain", spec.pop("command", ["python", PLAIN, *words]), **spec)
            job = stack.enter_context(local_job(tmp_path / "home", body, *others))
            job.variables = {"LEPTON_WARM_START": "0"}
            return job

        yield new


def test_a_script_without_torch_completes_under_the_python_of_lepton_itself(make: Make) -> None:
    job = make("python", "say=hello", replicas=2)
    job.start()
    assert job.ended() == 0
    assert job.status.state == "Complete"
    lines = job.output.splitlines()
    for rank in (0, 1):
        assert f"worker {rank} | [rank {rank}] hello {rank}" in lines
        assert f"worker {rank} | [rank {rank}] python {sys.executable}" in lines
        assert f"worker {rank} | [rank {rank}] which {sys.executable}" in lines
    assert job.left_behind() == []


def test_a_failed_job_says_why_and_its_lines_come_once_and_in_time(make: Make) -> None:
    """Case B29: followed into a file, a line each second, then exit code 3."""
    job = make("lines=4", "exit=3")
    job.start()
    seen: dict[str, float] = {}

    def watch() -> bool:
        for line in job.output.splitlines():
            if "line " in line:
                seen.setdefault(line, time.time())
        assert job.process is not None
        return job.process.poll() is not None

    until(watch, "the end of the job", 60)
    lines = [line for line in job.output.splitlines() if "] line " in line]
    assert lines == [f"worker 0 | [rank 0] line {number} of 0" for number in range(4)]
    moments = [seen[line] for line in lines]
    assert all(0.2 < later - earlier < 2.5 for earlier, later in itertools.pairwise(moments)), moments
    assert job.ended() == 1
    assert "exit code 3" in job.output.splitlines()[-1] or "exit code 3" in job.output
    assert job.status.last_failure is not None and job.status.last_failure.exit_code == 3


def test_the_restart_limit_holds_however_fast_a_script_dies(make: Make, tmp_path: Path) -> None:
    """Case B11: three runs, not one more, and the signal is named."""
    note = tmp_path / "runs"
    job = make(f"note={note}", "kill=SIGKILL", recovery={"maxRestarts": 2})
    job.start()
    assert job.ended() == 1
    assert len(note.read_text().splitlines()) == 3
    status = job.status
    assert status.state == "Failed" and status.reason == "RestartBudgetExceeded"
    assert status.last_failure is not None and status.last_failure.signal == signal.SIGKILL
    assert "maxRestarts allows 2" in job.output and "signal 9 (SIGKILL)" in job.output
    assert job.left_behind() == []


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["no-such-program"], "'no-such-program' was not found: correct trainer.command"),
        (["python", "syntax.py"], "SyntaxError: '(' was never closed (syntax.py:2)"),
        (["python", "full.py"], "OSError: [Errno 27] File too large (full.py:4)"),
    ],
    ids=["no such command", "syntax error", "no room for a checkpoint"],
)
def test_a_command_that_cannot_work_fails_the_job_with_the_reason(make: Make, command: list[str], said: str) -> None:
    files = {
        "syntax.py": "x = 1\nprint((x)\n",
        "full.py": "import os, resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "with open(os.environ['LEPTON_CHECKPOINT_DIR'] + '/step-1', 'wb', buffering=0) as file:\n"
        "    [file.write(bytes(1000)) for _ in range(2)]\n",
    }
    job = make(command=command, trainer={"code": {"configMap": "code"}}, others=(config_map("code", files),))
    job.start()
    assert job.ended() == 1
    failure = job.status.last_failure
    assert failure is not None and said in failure.message, failure
    assert said in job.output
    assert job.left_behind() == []


def config_map(name: str, data: dict[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


@pytest.mark.parametrize(
    ("spec", "others", "said"),
    [
        (
            {"trainer": {"code": {"configMap": "absent"}}},
            (),
            "spec.trainer.code.configMap: ConfigMap 'absent' is not in the manifest's file",
        ),
        ({"trainer": {"envFrom": [{"configMapRef": {"name": "absent"}}]}}, (), "spec.trainer.envFrom: ConfigMap 'absent' is not in"),
        (
            {"trainer": {"envFrom": [{"secretRef": {"name": "s"}}]}},
            (),
            "spec.trainer.envFrom: secretRef is not available without a cluster",
        ),
        ({"trainer": {"code": {"configMap": "code"}}}, (config_map("code", {"../x": ""}),), "'../x' is no valid key"),
        ({"replicas": 2, "minimum": 3}, (), "spec.workers"),
    ],
)
def test_a_manifest_that_cannot_be_run_is_refused_before_anything_starts(
    make: Make, spec: dict[str, Any], others: tuple[dict[str, Any], ...], said: str
) -> None:
    job = make("say=never", others=others, **spec)
    job.start()
    assert job.ended() == 2
    assert said in job.output and "Traceback" not in job.output
    assert not job.body


def test_a_run_directory_or_a_port_that_cannot_be_had_is_named(make: Make) -> None:
    job = make("exit=0")
    (job.home / "state").write_text("a file where a directory is needed")
    job.start()
    assert job.ended() == 2
    assert str(job.home / "state") in job.output and "Traceback" not in job.output
    (job.home / "state").unlink()
    (job.home / "state/default/plain").mkdir(parents=True)
    (job.home / "state/default/plain/claims").symlink_to("/proc")
    job.start()
    assert job.ended() == 2
    assert "claims/checkpoints" in job.output and "Traceback" not in job.output
    (job.home / "state/default/plain/claims").unlink()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        job.start("--metrics-port", port)
        assert job.ended() == 2
        assert port in job.output and "Traceback" not in job.output


def test_a_second_run_of_a_running_job_is_refused_and_a_finished_one_is_run_anew(make: Make, tmp_path: Path) -> None:
    job = make(f"until={tmp_path / 'go'}")
    job.start()
    job.until_status(lambda s: s.state == "Running", "the job runs")
    second = job.lepton("run", str(job.file), "--local")
    assert second.returncode == 2 and "run already" in second.stderr
    (tmp_path / "go").touch()
    assert job.ended() == 0
    first = job.body["metadata"]["uid"]
    job.start()
    assert job.ended() == 0
    assert job.body["metadata"]["uid"] != first and job.status.state == "Complete"


def test_commands_show_and_change_a_running_job(make: Make, tmp_path: Path) -> None:
    """get, describe, logs, scale and kill; a changed manifest is taken as `kubectl apply` takes it."""
    job = make(f"until={tmp_path / 'go'}", "say=done", replicas=2, recovery={"maxRestarts": 5})
    job.start()
    job.until_status(lambda s: s.state == "Running", "the job runs")
    header, line = job.lepton("get", "plain").stdout.splitlines()
    assert header.split() == [
        "NAME",
        "STATE",
        "WORKERS",
        "STEP",
        "PROGRESS",
        "LOSS",
        "ROUND",
        "METRIC",
        "THROUGHPUT",
        "ETA",
        "RESTARTS",
        "AGE",
    ]
    assert re.match(r"plain\s+Running\s+2/2\s", line)
    assert json.loads(job.lepton("get", "plain", "-o", "json").stdout)["metadata"]["name"] == "plain"
    assert job.lepton("get").stdout.splitlines()[1].startswith("plain ")
    agents = job.agents()
    assert job.lepton("kill", "plain", "--worker", "1").returncode == 0
    job.until(lambda: job.agents().get(1) not in (None, agents[1]), "another worker 1")
    assert job.agents()[0] == agents[0]
    assert "ended by signal 9 (SIGKILL)" in job.lepton("describe", "plain").stdout
    refused = job.lepton("scale", "plain", "--replicas", "0")
    assert refused.returncode == 2 and "replicas" in refused.stderr
    assert job.lepton("scale", "plain", "--replicas", "3").returncode == 0
    job.until_status(lambda s: s.rendezvous.size == 3, "three workers")
    (tmp_path / "go").touch()
    assert job.ended() == 0
    logs = job.lepton("logs", "plain", "--worker", "2").stdout
    assert "worker 2 | [rank 2] done 2" in logs and "worker 0" not in logs
    assert job.lepton("logs", "absent").returncode == 2
    assert job.lepton("kill", "plain", "--worker", "0").returncode == 2


def test_a_changed_manifest_is_taken_as_an_apply_would_be(make: Make, tmp_path: Path) -> None:
    job = make(f"until={tmp_path / 'go'}", replicas=1)
    job.start()
    job.until_status(lambda s: s.state == "Running", "the job runs")
    agents = job.agents()
    job.signal(signal.SIGKILL)
    assert job.process is not None
    job.process.wait()
    job.write(manifest("plain", ["python", PLAIN, "exit=1"], replicas=1))
    job.start()
    assert job.ended() == 2
    assert "the trainer can't be changed while the job exists" in job.output
    job.write(manifest("plain", ["python", PLAIN, f"until={tmp_path / 'go'}"], replicas=2, recovery={"maxRestarts": 0}))
    job.start()
    job.until_status(lambda s: s.rendezvous.size == 2, "the second worker has come")
    assert job.agents()[0] == agents[0]
    (tmp_path / "go").touch()
    assert job.ended() == 0


def test_agents_that_finished_while_nobody_watched_complete_the_job(make: Make, tmp_path: Path) -> None:
    job = make(f"until={tmp_path / 'go'}", f"note={tmp_path / 'runs'}", replicas=2)
    job.start()
    job.until_status(lambda s: s.state == "Running", "the job runs")
    job.records()
    job.signal(signal.SIGKILL)
    assert job.process is not None
    job.process.wait()
    (tmp_path / "go").touch()
    until(lambda: (tmp_path / "runs").exists() and len((tmp_path / "runs").read_text().splitlines()) == 2, "both ranks end")
    job.start()
    assert job.ended() == 0
    assert len((tmp_path / "runs").read_text().splitlines()) == 2, "nothing was run again"
    assert job.status.restarts.total == 0
    assert job.left_behind() == []


def test_ctrl_c_ends_everything_and_the_next_run_goes_on(make: Make, tmp_path: Path) -> None:
    job = make(f"until={tmp_path / 'go'}", replicas=2)
    job.start()
    job.until_status(lambda s: s.state == "Running", "the job runs")
    uid = job.body["metadata"]["uid"]
    job.records()
    job.signal(signal.SIGINT)
    assert job.ended(15) == 130
    assert job.left_behind() == []
    assert job.status.state == "Pending" and job.status.workers.summary == "0/2"
    (tmp_path / "go").touch()
    job.start()
    assert job.ended() == 0
    assert job.body["metadata"]["uid"] == uid
    assert job.status.restarts.recent == (), "an interruption is no failure"


def test_a_second_ctrl_c_waits_for_nobody(make: Make, tmp_path: Path) -> None:
    code = (
        f"import signal,time,pathlib; signal.signal(15, signal.SIG_IGN); pathlib.Path({str(tmp_path / 'deaf')!r}).touch(); time.sleep(600)"
    )
    job = make(command=["python", "-c", code])
    job.start()
    job.until(lambda: (tmp_path / "deaf").exists(), "a rank that ignores SIGTERM")
    job.records()
    job.signal(signal.SIGINT)
    job.until(lambda: "Ctrl-C again" in job.output, "the hint")
    begun = time.monotonic()
    job.signal(signal.SIGINT)
    assert job.ended(10) == 130
    assert time.monotonic() - begun < 4
    assert job.left_behind() == []
    assert list((job.run_dir / "workers").iterdir()) == [], "no record that the next run would take for a failure"


def test_ctrl_c_stops_all_ranks_after_the_same_step_where_the_script_asks(make: Make, tmp_path: Path) -> None:
    job = make(command=["python", str(SCRIPTS / "stoppable.py"), str(tmp_path / "stopped")], replicas=2)
    job.start()
    job.until_status(lambda s: (s.progress.step or 0) > 0, "the job steps")
    time.sleep(1.5)  # until agents have told, by their next telemetry, that the script asks
    job.signal(signal.SIGINT)
    assert job.ended(20) == 130
    stopped = dict(line.split() for line in (tmp_path / "stopped").read_text().splitlines())
    assert set(stopped) == {"0", "1"} and len(set(stopped.values())) == 1, stopped


def test_what_a_script_left_in_the_background_ends_with_its_agent(make: Make, tmp_path: Path) -> None:
    """In sessions of their own, with and without the environment that marks them; the agent is killed and can do nothing for them."""
    job = make(f"daemons={tmp_path / 'daemons'}", f"until={tmp_path / 'go'}", recovery={"maxRestarts": 1})
    job.start()
    job.until_status(lambda s: s.state == "Running", "the job runs")
    until(lambda: (tmp_path / "daemons").exists() and len((tmp_path / "daemons").read_text().split()) == 2, "both daemons")
    first = list(map(int, (tmp_path / "daemons").read_text().split()))
    agents = job.agents()
    os.kill(agents[0], signal.SIGKILL)
    until(lambda: all(identify(pid) is None for pid in first), "they are gone, too", 5)
    job.until(lambda: job.agents().get(0) not in (None, agents[0]), "another worker 0")
    (tmp_path / "go").touch()
    assert job.ended() == 0
    assert all(identify(int(pid)) is None for pid in (tmp_path / "daemons").read_text().split())
    assert job.left_behind() == []


def test_a_progress_bar_and_a_huge_line_go_through_the_log(make: Make) -> None:
    """Case B24, shortened: carriage returns alone, then one line of 4 MiB, then exit 1."""
    job = make("returns=7", "long=4194304", "exit=1")
    job.start()
    moved: list[float] = []

    def watch() -> bool:
        lines = len([line for line in job.output.splitlines() if " of many" in line])
        if lines > len(moved):
            moved.append(time.monotonic())
        assert job.process is not None
        return job.process.poll() is not None

    until(watch, "the end of the job", 60)
    assert job.ended() == 1
    assert len(moved) >= 2 and all(later - earlier < 5 for earlier, later in itertools.pairwise(moved)), moved
    failure = job.status.last_failure
    assert failure is not None and failure.log_tail.rstrip().endswith("end") and len(failure.log_tail.encode()) <= 2048
    assert sum(line.count("x") for line in job.output.splitlines() if line.startswith("worker 0") and "xxx" in line) == 4194300


@pytest.mark.parametrize("code", [0, 1])
def test_output_that_is_no_text_harms_nobody(make: Make, code: int) -> None:
    """Case B25: Latin-1, NUL, escape codes, a glyph cut at the limit."""
    job = make("bytes", f"exit={code}")
    job.start()
    assert job.ended() == code
    shown = job.lepton("logs", "plain").stdout
    assert "latin ��" in shown and "last words" in shown
    if code:
        failure = job.status.last_failure
        assert failure is not None and "last words" in failure.log_tail
        assert len(failure.log_tail.encode()) <= 2048 and not re.search(r"[\x00-\x08\x0b-\x1f]", failure.log_tail)


def test_metrics_are_the_numbers_of_the_script(make: Make, tmp_path: Path) -> None:
    """Loss and counters of the agents' /metrics and of the operator's, at a step where the script stands still."""
    job = make("steps=200", f"until={tmp_path / 'go'}", replicas=2, recovery={"maxRestarts": 1})
    job.start()
    job.until_status(lambda s: s.state == "Running", "the job runs")

    def of_worker(name: str) -> str:
        return sample(f"lepton_train_{name}", 'namespace="default",job_name="plain",worker="0"')

    def of_job(name: str, more: str = "") -> str:
        return sample(f"lepton_job_{name}", f'namespace="default",job_name="plain",{more}')

    while (step := (seen := job.agent_metrics(0)).get(of_worker("step"), 0)) < 200:
        if step:
            assert seen[of_worker("loss")] == 1 / step
            assert seen[of_worker("steps_total")] == step
    job.until(lambda: job.metrics().get(of_job("steps_total")) == 200, "the operator has counted all steps")
    seen = job.metrics()
    assert seen[of_job("loss")] == 1 / 200
    assert seen[of_job("samples_total")] == 1600
    assert seen[of_job("workers", 'state="active"')] == 2
    assert seen["lepton_operator_agents"] == 2
    assert job.lepton("kill", "plain", "--worker", "1").returncode == 0
    job.until(lambda: job.metrics().get(of_job("restarts_total", 'kind="pod"')) == 1, "a restart is counted")
    job.until_status(lambda s: s.rendezvous.size == 2 and s.rendezvous.generation > 1, "both are back")
    job.until(lambda: (own := job.agent_metrics(0))[of_worker("step")] == 200 and own[of_worker("steps_total")] >= 400, "steps made again")
    job.until(lambda: job.metrics()[of_job("steps_total")] >= 400, "the operator counts them, too")
    (tmp_path / "go").touch()
    assert job.ended() == 0


def test_a_terminal_sees_a_table_that_lives(make: Make, tmp_path: Path) -> None:
    job = make(command=["python", str(SCRIPTS / "stoppable.py"), str(tmp_path / "stopped")], replicas=2)
    ours, theirs = pty.openpty()
    environment = {**job.env, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    job.process = subprocess.Popen(
        [*CLI, "run", str(job.file), "--local"], env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen = ""

    def shows(pattern: str) -> bool:
        nonlocal seen
        if select.select([ours], [], [], 0)[0]:
            with suppress(OSError):  # the terminal's other end is closed
                seen += os.read(ours, 65536).decode("utf-8", "replace")
        return bool(re.search(pattern, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)))

    until(lambda: shows(r"WORKER +GENERATION +RANK +STATE +STEP +LOSS"), "the head of the table")
    until(lambda: shows(r"default/plain +Running +workers 2/2, step \d+, loss 1, [\d.]+k? samples/s"), "numbers that move")
    until(lambda: shows(r"0 +1 +0 +running +\d+ +1\s"), "a line for a worker")
    until(lambda: shows(r"FirstGroup: generation 1: 2 of 2 workers"), "an event")
    job.signal(signal.SIGINT)
    until(lambda: shows(r"interrupted: ending the workers") or job.process.poll() is not None, "the last word", 20)  # type: ignore[union-attr]
    until(lambda: shows("no such text") or job.process.poll() is not None, "the end", 20)  # type: ignore[union-attr]
    os.close(ours)
    assert job.ended(20) == 130
