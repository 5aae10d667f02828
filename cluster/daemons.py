"""Starts, recognises and stops the cluster's long-running programs.

A process is known by its pid together with the time at which the kernel started it, so a reused pid is never mistaken for ours; and where
the record is lost (a crash in the middle), by a command line that names a path in our state folder. Nothing is ever ended by its name.
"""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cluster.places import LOGS, STATE, TOOLS
from cluster.terminal import Refused

RECORDS = STATE / "processes"
LOG_LIMIT = 64 << 20
"""Bytes after which a log is begun anew at the next start."""


class Process(NamedTuple):
    """One process for good: its pid, and when the kernel started it (clock ticks after boot)."""

    pid: int
    started: int


@dataclass(frozen=True, slots=True)
class Daemon:
    """A program to keep running. `inputs` are files that it reads at its start: when they change it is started again."""

    name: str
    arguments: tuple[str, ...]
    inputs: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def fingerprint(self) -> str:
        """Changes whenever the program would be started differently."""
        digest = hashlib.sha256("\0".join(self.arguments).encode())
        for path in self.inputs:
            digest.update(path.read_bytes())
        return digest.hexdigest()


def start(daemon: Daemon) -> int:
    """Start the daemon unless it runs just so already; returns its pid."""
    recorded, fingerprint = _record(daemon.name)
    if recorded and alive(recorded):
        if fingerprint == daemon.fingerprint():
            return recorded.pid
        stop([daemon.name])
    LOGS.mkdir(parents=True, exist_ok=True)
    RECORDS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{daemon.name}.log"
    with log.open("w" if log.exists() and log.stat().st_size > LOG_LIMIT else "a") as output:
        child = subprocess.Popen(
            daemon.arguments,
            cwd=STATE,
            env={**os.environ, **daemon.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _children.append(child)
    record = {"pid": child.pid, "started": start_time(child.pid), "fingerprint": daemon.fingerprint()}
    (RECORDS / daemon.name).write_text(json.dumps(record))
    return child.pid


def running(name: str) -> bool:
    """Whether the daemon of this name runs."""
    return process(name) is not None


def process(name: str) -> Process | None:
    """The living process of the daemon of this name."""
    found, _ = _record(name)
    return found if found and alive(found) else None


def require_running(names: Iterable[str]) -> None:
    """Raise Refused, with the end of its log, for the first daemon that has died."""
    for name in names:
        if not running(name):
            log = LOGS / f"{name}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-8:]) if log.exists() else ""
            raise Refused(f"{name} has ended; the end of {log}:\n{tail}")


def stop(names: Iterable[str], grace: float = 5) -> None:
    """End the daemons together: SIGTERM, and SIGKILL for those that are still there after `grace` seconds."""
    names = tuple(names)
    terminate([recorded for recorded, _ in map(_record, names) if recorded], grace)
    for name in names:
        (RECORDS / name).unlink(missing_ok=True)


def terminate(processes: Iterable[Process], grace: float) -> None:
    """End the processes, by SIGTERM first and by SIGKILL after `grace` seconds; returns when all are gone."""
    left = [process for process in processes if alive(process)]
    for signal_number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        for pid, _ in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)
        deadline = time.monotonic() + patience
        while left and time.monotonic() < deadline:
            time.sleep(0.02)
            left = [process for process in left if alive(process)]


def names() -> list[str]:
    """The daemons of which there is a record."""
    return sorted(path.name for path in RECORDS.iterdir()) if RECORDS.is_dir() else []


def strays() -> list[Process]:
    """Processes of the cluster, whether or not there is a record of them: our programs with a path of our state in the command line."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program, *arguments = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            ours = program.startswith(f"{TOOLS}/") or Path(program).name.startswith("containerd") or "cluster.volumes" in arguments
            if ours and any(f"{STATE}/" in argument for argument in arguments):
                found.append(Process(int(folder.name), start_time(int(folder.name))))
    return found


def alive(process: Process) -> bool:
    """Whether that very process runs; a zombie that waits to be reaped does not."""
    try:
        state, started = _stat(process.pid)
        return started == process.started and state not in "ZX"
    except OSError:
        return False


def start_time(pid: int) -> int:
    """When the kernel started the process, in clock ticks after boot. Raises OSError when there is none."""
    return _stat(pid)[1]


def _stat(pid: int) -> tuple[str, int]:
    # The second field is the program's name in parentheses and may itself hold spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[19])


def _record(name: str) -> tuple[Process | None, str]:
    try:
        content = json.loads((RECORDS / name).read_text())
        return Process(content["pid"], content["started"]), content["fingerprint"]
    except (OSError, ValueError, KeyError):
        return None, ""


_children: list[subprocess.Popen[bytes]] = []
"""Kept, so that Python does not warn of daemons that outlive this command, as they are meant to."""
