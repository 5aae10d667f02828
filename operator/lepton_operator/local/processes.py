"""Processes of one machine as workers: found again after a restart, seen to end at once, and ended with all that descends from them."""

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def become_subreaper() -> None:
    """Orphans of our agents become our children, so that none is out of reach."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for good: a pid alone is used again."""

    pid: int
    started: int  # clock ticks since boot, as /proc tells

    @property
    def alive(self) -> bool:
        return identify(self.pid) == self


def identify(pid: int) -> Identity | None:
    """None when there is no such process, or only its zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    after = text.rpartition(")")[2].split()
    return None if after[0] in "ZX" else Identity(pid, int(after[19]))


def marked(marker: str) -> Iterator[int]:
    """Pids of our user's processes whose environment holds `marker` ("NAME=value"): an agent, its ranks, and whatever those started."""
    wanted = marker.encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)
        except OSError:
            continue


def sweep(marker: str) -> int:
    """SIGKILLs all that carry `marker`, until none is left; returns how many were found."""
    found = 0
    for _ in range(50):
        pids = [pid for pid in marked(marker) if identify(pid) is not None]
        if not pids:
            break
        found += len(pids)
        for pid in pids:
            send(pid, signal.SIGKILL)
    return found


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


class Watch:
    """Calls back, in the event loop, once when a process ends; `status` is its wait status where it was our child, else None."""

    def __init__(self, identity: Identity, on_end: Callable[[int | None], None]) -> None:
        self._identity = identity
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        try:
            self._fd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            self._fd = -1
            self._loop.call_soon(self._ended)
            return
        if not identity.alive and identify(identity.pid) is not None:  # the pid is somebody else's by now
            self._loop.call_soon(self._ended)
            return
        self._loop.add_reader(self._fd, self._ended)

    def _ended(self) -> None:
        self.close()
        try:
            pid, status = os.waitpid(self._identity.pid, os.WNOHANG)
        except ChildProcessError:
            self._on_end(None)
            return
        self._on_end(status if pid else None)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


class Orphans:
    """What falls to us as subreaper when an agent dies: ended and collected. Looks at our children each time it is asked."""

    def __init__(self) -> None:
        self._dead: set[int] = set()  # zombies seen the last time

    def look(self, known: set[int]) -> None:
        """`known` pids are somebody else's to wait for. A zombie is collected when it is seen twice: whoever waits for it is quicker."""
        dead: set[int] = set()
        for path in Path("/proc/self/task").glob("*/children"):
            for pid in map(int, path.read_text().split()):
                if pid in known:
                    continue
                if identify(pid) is None:
                    dead.add(pid)
                elif _session(pid) != os.getsid(0):  # agents lead sessions of their own, and so does all that they start
                    send(pid, signal.SIGKILL)
        for pid in dead & self._dead:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        self._dead = dead


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return os.getsid(0)


def remove_tree(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
