"""The run directory of a local job: its object in a locked file with compare-and-swap, its workers' records, logs and checkpoints.

What the API server is to a cluster, this is to one machine: `lepton run` writes status here, `lepton scale` writes spec, and whoever runs
again finds everything. Every file is replaced whole, so that none is ever seen half written.
"""

import fcntl
import json
import os
import secrets
import shutil
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
        return Path(named).absolute()
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
        self.metrics_file = self.path / "metrics-address"
        self.token_file = self.path / "token"
        self.events_file = self.path / "events.log"

    def make(self) -> None:
        """Raises OSError where the machine does not allow it."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.logs, self.workers, self.claims, self.code):
            folder.mkdir(exist_ok=True)
        if not self.token_file.exists():
            replace_file(self.token_file, secrets.token_urlsafe(32), mode=0o600)

    def clear(self, checkpoints: bool) -> None:
        """A new job begins: records, logs and events of the last one go, and its checkpoints where they are to."""
        for folder in (self.logs, self.workers, *((self.claims,) if checkpoints else ())):
            shutil.rmtree(folder)
            folder.mkdir()
        self.events_file.write_text("")

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / "job.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def read(self) -> Json | None:
        """The job's object, or None where there is none."""
        try:
            body: Json = json.loads(self.job_file.read_text())
        except (FileNotFoundError, NotADirectoryError):
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
        replace_file(self.job_file, json.dumps(body, indent=1))

    def claim(self) -> int | None:
        """Takes the one place of whoever runs this job; the descriptor keeps it. None: somebody else has it."""
        descriptor = os.open(self.lock_file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    @property
    def running(self) -> bool:
        """Whether a `lepton run` has this job now."""
        descriptor = self.claim() if self.lock_file.exists() else None
        if descriptor is not None:
            os.close(descriptor)
        return self.lock_file.exists() and descriptor is None

    def write_addresses(self, coordinator: str, metrics: str) -> None:
        replace_file(self.coordinator_file, coordinator)
        replace_file(self.metrics_file, metrics)

    def log_file(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def result_file(self, name: str) -> Path:
        """The last words of a worker's agent."""
        return self.workers / f"{name}.result"

    def write_record(self, name: str, record: Json) -> None:
        replace_file(self.workers / f"{name}.json", json.dumps(record))

    def record(self, name: str) -> Json:
        record: Json = json.loads((self.workers / f"{name}.json").read_text())
        return record

    def records(self) -> dict[str, Json]:
        return {path.stem: self.record(path.stem) for path in sorted(self.workers.glob("*.json"))}

    def drop_record(self, name: str) -> None:
        (self.workers / f"{name}.json").unlink(missing_ok=True)
        self.result_file(name).unlink(missing_ok=True)


def replace_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Writes `path` so that a reader sees the old text or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from None
