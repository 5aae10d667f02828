"""The run directory of a local job: its object in a locked file with compare-and-swap, its workers' records, logs and checkpoints.

What the API server is to a cluster, this is to one machine: `lepton run` writes status here, `lepton scale` writes spec, and whoever runs
again finds everything.
"""

import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lepton_operator.substrate import Conflict, Gone

Json = dict[str, Any]


def state_home() -> Path:
    """Where local jobs live: LEPTON_HOME, else the XDG state directory."""
    named = os.environ.get("LEPTON_HOME")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "lepton"


class RunDirectory:
    def __init__(self, namespace: str, name: str) -> None:
        self.path = state_home() / namespace / name
        self.logs = self.path / "logs"
        self.workers = self.path / "workers"
        self.claims = self.path / "claims"
        self.code = self.path / "code"
        self.job_file = self.path / "job.json"
        self.lock_file = self.path / "run.lock"
        self.coordinator_file = self.path / "coordinator"
        self.token_file = self.path / "token"
        self.events_file = self.path / "events.log"

    def make(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.logs, self.workers, self.claims, self.code):
            folder.mkdir(exist_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / "job.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> Json | None:
        """The job's object, or None where there is none."""
        try:
            body: Json = json.loads(self.job_file.read_text())
        except FileNotFoundError:
            return None
        return body

    def create(self, body: Json) -> None:
        with self._locked():
            self._write(body)

    def update(self, change: Callable[[Json], None], version: str | None = None) -> Json:
        """Applies `change` under the lock. With `version`, only if that is still the object's. Raises `Conflict`, `Gone`."""
        with self._locked():
            body = self.read()
            if body is None:
                raise Gone(f"{self.job_file} is gone")
            if version is not None and body["metadata"]["resourceVersion"] != version:
                raise Conflict(f"{self.job_file} has changed")
            change(body)
            body["metadata"]["resourceVersion"] = str(int(body["metadata"]["resourceVersion"]) + 1)
            self._write(body)
            return body

    def _write(self, body: Json) -> None:
        _replace(self.job_file, json.dumps(body, indent=1))

    def claim(self) -> int | None:
        """Takes the one place of whoever runs this job; the descriptor keeps it. None: somebody else has it."""
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def write_coordinator(self, address: str) -> None:
        _replace(self.coordinator_file, address)

    def write_record(self, name: str, record: Json) -> None:
        _replace(self.workers / f"{name}.json", json.dumps(record))

    def records(self) -> dict[str, Json]:
        return {path.stem: json.loads(path.read_text()) for path in sorted(self.workers.glob("*.json"))}

    def drop_record(self, name: str) -> None:
        (self.workers / f"{name}.json").unlink(missing_ok=True)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
