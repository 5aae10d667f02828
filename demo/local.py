"""`make demo-local`: a group on this machine loses worker 0 and goes on. No cluster, no root; every step numbered and timed."""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from cluster.terminal import Refused, say, step, wait_until
from demo.digits import NotThere, accuracy, samples_lost
from lepton_operator import conditions
from lepton_operator.local import columns
from lepton_operator.local.store import RunDirectory, state_home
from lepton_operator.status import Status, read_status

CHECKOUT = Path(__file__).parents[1]
MANIFEST = Path("examples") / "digits.yaml"
HOME = state_home().with_name("lepton-demo")
KILL_AT = 300
"""Steps into the training."""
FIRST_STEP_SECONDS, TRAINING_SECONDS = 60.0, 300.0
SHOWN = ("loss", "steps_total", "samples_total", "restarts_total", "recoveries_total", "recovery_seconds_total", "recomputed_steps_total")


def main() -> int:
    os.environ["LEPTON_HOME"] = str(HOME)
    run = RunDirectory("default", "digits")
    HOME.mkdir(parents=True, exist_ok=True)
    output = HOME / "output"
    begun, before = time.monotonic(), _uid(run)
    with output.open("wb") as file:
        command = [sys.executable, "-m", "lepton_operator.cli", "run", str(MANIFEST), "--local", "--fresh"]
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=file, stderr=file)
    try:
        wait_until("the job", lambda: _uid(run) != before or process.poll() is not None, FIRST_STEP_SECONDS)  # not the last demo's
        return _demo(run, process, output, begun)
    except (Refused, NotThere) as error:
        say(f"\ndemo-local: {error}\n{output.read_text(errors='replace')[-2000:]}")
        return 1
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _demo(run: RunDirectory, process: "subprocess.Popen[bytes]", output: Path, begun: float) -> int:
    with step(f"lepton run {MANIFEST} --local", long=True) as notes:
        _until("the first step", run, process, lambda status: (status.progress.step or 0) > 0, FIRST_STEP_SECONDS)
        notes.append(f"first step {_status(run).startup.first_step_seconds or 0:.1f} s after the start")
    with step("two workers train", long=True):
        _until(f"step {KILL_AT}", run, process, lambda status: _step(run) >= KILL_AT, TRAINING_SECONDS)
    with step("lepton kill digits --worker 0 (in the middle; SIGKILL)", long=True):
        killed = subprocess.run(
            [sys.executable, "-m", "lepton_operator.cli", "kill", "digits", "--worker", "0"], capture_output=True, text=True
        )
        say(f"     {killed.stdout.strip() or killed.stderr.strip()}")
        _until("a step after the kill", run, process, lambda status: status.goodput.recoveries >= 1, FIRST_STEP_SECONDS)
    goodput = _status(run).goodput
    say(f"     the others stepped again after   {goodput.mean_recovery_seconds or 0:.2f} s")
    say(f"     samples lost                     {samples_lost(output.read_text(errors='replace'))}")
    say(f"     samples computed again           {goodput.recomputed_samples}")
    metrics: dict[str, str] = {}
    with step("the group is whole again, trains on, and ends", long=True):

        def over(status: Status) -> bool:
            metrics.update(_metrics(run))
            return conditions.is_true(status.conditions, conditions.FINISHED)

        _until("the end of the job", run, process, over, TRAINING_SECONDS)
    code = process.wait()
    if code != 0:
        raise Refused(f"the job failed: {_status(run).message}")
    say("     the last /metrics of `lepton run`:")
    for name, value in metrics.items():
        say(f"       {name:<90} {value}")
    say(f"\n{accuracy(output.read_text(errors='replace'))}; {time.monotonic() - begun:.0f} s from `lepton run` to the end")
    say(_NEXT.format(home=HOME, manifest=MANIFEST))
    return 0


_NEXT = """
Next:
  export LEPTON_HOME={home} PATH=.venv/bin:$PATH
  lepton get digits; lepton describe digits; lepton logs digits --worker 1
  lepton run {manifest} --local --fresh     # in a terminal: the live table; then, in another one:
  lepton scale digits --replicas 3; lepton kill digits --worker 0
  make demo                                               # the same on a Kubernetes cluster, made where there is none"""


def _until(what: str, run: RunDirectory, process: "subprocess.Popen[bytes]", done: Callable[[Status], bool], seconds: float) -> None:
    """Shows the job's line whenever it has changed, until `done(status)`."""
    shown = ""

    def look() -> bool:
        nonlocal shown
        body = run.read()
        if body is None or "status" not in body:
            if process.poll() is not None:
                raise Refused("`lepton run` has ended")
            return False
        heading, line = columns.table([columns.row(body)]).splitlines()
        if line.rpartition(" ")[0] != shown:
            if not shown:
                say(f"     {heading}")
            shown = line.rpartition(" ")[0]
            say(f"     {line}")
        return done(read_status(body["status"]))

    wait_until(what, look, seconds, interval=0.1)


def _uid(run: RunDirectory) -> str:
    """Of the job that the run directory holds; empty: none."""
    body = run.read()
    return str(body["metadata"]["uid"]) if body is not None else ""


def _status(run: RunDirectory) -> Status:
    body = run.read()
    assert body is not None
    return read_status(body["status"])


def _step(run: RunDirectory) -> int:
    """The newest step, from /metrics: the status is written now and then only."""
    return int(float(next((v for n, v in _metrics(run).items() if "_steps_total" in n and "recomputed" not in n), "0")))


def _metrics(run: RunDirectory) -> dict[str, str]:
    """The samples worth showing; empty while nobody answers (the run has just ended)."""
    try:
        with urllib.request.urlopen(run.metrics_file.read_text(), timeout=2) as answer:
            lines = answer.read().decode().splitlines()
    except OSError:
        return {}
    pairs = (line.rpartition(" ") for line in lines if line.startswith("lepton_job_"))
    return {name: value for name, _, value in pairs if name.removeprefix("lepton_job_").partition("{")[0] in SHOWN}


if __name__ == "__main__":
    sys.exit(main())
