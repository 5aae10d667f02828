"""Processes of pods as the machine sees them: signals that nobody inside a container could send to its PID 1.

The cluster's node is this machine (embedded, or kind's container on it), so a pod's processes are in our /proc, marked by its UID.
"""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def pids_of_pod(uid: str, marker: str = "") -> list[int]:
    """Host pids of the pod's processes whose command line contains `marker`, each container's PID 1 first."""
    marks = (uid, uid.replace("-", "_"))
    found: list[tuple[int, int]] = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if not any(mark in (folder / "cgroup").read_text() for mark in marks):
                continue
            if marker not in (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                continue
            status = (folder / "status").read_text()
        except OSError:
            continue
        inside = next(line.split()[-1] for line in status.splitlines() if line.startswith("NSpid:"))
        found.append((int(inside), int(folder.name)))
    return [pid for _, pid in sorted(found)]


def agent_of_pod(uid: str) -> int:
    """Host pid of a worker pod's agent: PID 1 of the trainer container."""
    return pids_of_pod(uid, "lepton_trainer")[0]


def operator_of_pod(uid: str) -> int:
    """Host pid of an operator pod's main process."""
    return pids_of_pod(uid, "lepton-operator")[0]


def send(pid: int, number: signal.Signals) -> None:
    """Sends the signal; a process that is gone already is fine."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


@contextmanager
def connections_cut(uid: str, port: int) -> Iterator[None]:
    """Inside the block the pod cannot reach anybody's TCP `port`: what is open is reset at the next byte, what is tried is refused."""
    inside = ["nsenter", "-t", str(pids_of_pod(uid)[0]), "-n", "iptables", "-w"]
    rule = ["OUTPUT", "-p", "tcp", "--dport", str(port), "-j", "REJECT", "--reject-with", "tcp-reset"]
    subprocess.run([*inside, "-I", *rule], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run([*inside, "-D", *rule], check=True, capture_output=True)
