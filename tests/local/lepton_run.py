"""`lepton run` as a user starts it, in a home of its own, and what can be seen of it from outside: files, processes, ports, /metrics."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from lepton_operator import conditions
from lepton_operator.local.processes import identify
from lepton_operator.status import Status, read_status

SCRIPTS = Path(__file__).parent / "scripts"
CLI = [sys.executable, "-m", "lepton_operator.cli"]


def until(condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
    """What `condition` returns once that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return found


def manifest(name: str, command: list[str], replicas: int = 3, minimum: int = 1, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "training.lepton.ai/v1alpha1",
        "kind": "LeptonTrainingJob",
        "metadata": {"name": name},
        "spec": {
            "trainer": {"command": command, **spec.pop("trainer", {})},
            "workers": {"replicas": replicas, "minReplicas": minimum},
            "checkpoint": {"claimName": "checkpoints"},
            **spec,
        },
    }


class LocalJob:
    """One job in `home`; `start` may be called again and again, as a user would."""

    def __init__(self, home: Path, body: dict[str, Any], *others: dict[str, Any]) -> None:
        self.home = home
        self.name = str(body["metadata"]["name"])
        self.file = home / f"{self.name}.yaml"
        self.write(body, *others)
        self.run_dir = home / "state" / "default" / self.name
        self.output_file = home / "output"
        self.process: subprocess.Popen[bytes] | None = None
        self.variables: dict[str, str] = {}  # for `lepton`, beyond what every test sets
        self.uids: set[str] = set()  # of every worker seen
        self.job_uids: set[str] = set()

    def write(self, *documents: dict[str, Any]) -> None:
        self.file.write_text(yaml.safe_dump_all(documents))

    # What a user does.

    def start(self, *arguments: str) -> None:
        with self.output_file.open("ab") as output:
            command = [*CLI, "run", str(self.file), "--local", *arguments]
            self.process = subprocess.Popen(command, env=self.env, stdout=output, stderr=output, start_new_session=True)

    def lepton(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*CLI, *arguments], env=self.env, capture_output=True, text=True, timeout=60, errors="replace")

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("LEPTON_")}
        return {**kept, "LEPTON_HOME": str(self.home / "state"), "OMP_NUM_THREADS": "1", **self.variables}

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def ended(self, seconds: float = 60.0) -> int:
        """The exit code of `lepton run`."""
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"`lepton run` did not end in {seconds:g} s: {self.status}\n{self.output[-4000:]}") from None

    # What can be seen.

    @property
    def output(self) -> str:
        return self.output_file.read_text("utf-8", "replace") if self.output_file.exists() else ""

    @property
    def body(self) -> dict[str, Any]:
        try:
            body: dict[str, Any] = json.loads((self.run_dir / "job.json").read_text())
        except FileNotFoundError:
            return {}
        self.job_uids.add(body["metadata"]["uid"])
        return body

    @property
    def status(self) -> Status:
        return read_status(self.body.get("status", {}))

    @property
    def events(self) -> list[str]:
        file = self.run_dir / "events.log"
        return file.read_text().splitlines() if file.exists() else []

    def records(self) -> dict[int, dict[str, Any]]:
        """By index, of the workers whose agent lives."""
        found: dict[int, dict[str, Any]] = {}
        for path in (self.run_dir / "workers").glob("*.json"):
            record = json.loads(path.read_text())
            self.uids.add(record["uid"])
            if "ended" not in record and identify(record["pid"]) is not None:
                found[record["index"]] = record
        return found

    def agents(self) -> dict[int, int]:
        """index -> pid of the living agents."""
        return {index: int(record["pid"]) for index, record in self.records().items()}

    @property
    def metrics_address(self) -> str:
        return (self.run_dir / "metrics-address").read_text()

    def metrics(self) -> dict[str, float]:
        return scrape(self.metrics_address)

    def agent_metrics(self, index: int) -> dict[str, float]:
        port = Path(f"/dev/shm/lepton-{self.records()[index]['uid']}/metrics-port").read_text().strip()
        return scrape(f"http://127.0.0.1:{port}/metrics")

    def until(self, condition: Callable[[], Any], what: str, seconds: float = 30.0) -> Any:
        """As `until`, but a `lepton run` that has ended meanwhile waits no longer."""

        def looked_at() -> Any:
            found = condition()
            ended = self.process is not None and self.process.poll() is not None
            assert found or not ended or condition(), f"`lepton run` ended before {what}\n{self.output[-4000:]}"
            return found or (ended and condition())

        try:
            return until(looked_at, what, seconds)
        except AssertionError as error:
            raise AssertionError(
                f"{error}\nlast failure: {self.status.last_failure}\nhistory: {self.status.history}\noutput: {self.output[-2000:]}"
            ) from None

    def until_status(self, condition: Callable[[Status], bool], what: str, seconds: float = 30.0) -> Status:
        def status() -> Status | None:
            now = self.status
            return now if condition(now) else None

        found: Status = self.until(status, what, seconds)
        return found

    def until_finished(self, seconds: float = 60.0) -> Status:
        return self.until_status(lambda s: conditions.is_true(s.conditions, conditions.FINISHED), "the job is Finished", seconds)

    # What must not be there.

    def left_behind(self) -> list[str]:
        """Processes and files of this job that still are there."""
        assert self.body
        self.records()
        needles = [f"LEPTON_JOB_UID={uid}".encode() for uid in self.job_uids]
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and identify(int(entry.name)) is not None:
                try:
                    if any(needle in (entry / "environ").read_bytes().split(b"\0") for needle in needles):
                        found.append(f"process {entry.name}: {(entry / 'cmdline').read_bytes()!r}")
                except OSError:
                    continue
        return found + [str(path) for uid in self.uids for path in Path("/dev/shm").glob(f"*{uid}*")]

    def sweep(self) -> None:
        """After a test, however it went."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for entry in [entry for entry in self.left_behind() if entry.startswith("process")] if self.body else []:
            try:
                os.kill(int(entry.split()[1].rstrip(":")), signal.SIGKILL)
            except ProcessLookupError:
                continue


@contextmanager
def local_job(home: Path, body: dict[str, Any], *others: dict[str, Any]) -> Iterator[LocalJob]:
    """Nothing of it is left afterwards; that it was so by itself is for the test to say."""
    home.mkdir(exist_ok=True)
    job = LocalJob(home, body, *others)
    try:
        yield job
    finally:
        job.sweep()


def scrape(address: str) -> dict[str, float]:
    """Samples of a /metrics page, by name and sorted labels: `name{a="1",b="2"}`."""
    with urllib.request.urlopen(address, timeout=5) as answer:
        text = answer.read().decode()
    found = (re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line) for line in text.splitlines() if not line.startswith("#"))
    return {sample(match[1], match[2] or ""): float(match[3]) for match in found if match}


def sample(name: str, labels: str) -> str:
    """The key of a sample, whatever order its labels come in."""
    return f"{name}{{{','.join(sorted(filter(None, labels.split(','))))}}}" if labels else name


def listening(port: int) -> bool:
    """Whether a TCP socket of this machine listens on `port`."""
    tables = Path("/proc/net/tcp").read_text().splitlines()[1:] + Path("/proc/net/tcp6").read_text().splitlines()[1:]
    return any(int(fields[1].rpartition(":")[2], 16) == port and fields[3] == "0A" for fields in map(str.split, tables))
