"""Processes as the kernel knows them: made so that they die with us, found by descent, killed without leaving any.

Nothing here knows of ranks or generations. Linux only.
"""

import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Set, Tuple

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

try:
    _prctl: "Optional[Callable[..., int]]" = ctypes.CDLL(None, use_errno=True).prctl
except (OSError, AttributeError):
    _prctl = None


def become_subreaper() -> bool:
    """Orphans among our descendants become our children, as they do for PID 1. False where the kernel will not."""
    return _prctl is not None and _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def die_with_parent(parent: int) -> None:
    """Asks for a SIGKILL when the parent (its pid is `parent`) dies; ends at once when it is already dead. Best effort."""
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(137)


def prefer_for_oom() -> None:
    """Where memory runs out, the kernel is to take this process rather than the agent, whose death would cost the pod."""
    try:
        with open("/proc/self/oom_score_adj", "r+") as file:
            score = int(file.read())
            file.seek(0)
            file.write(str(min(1000, score + 100)))
    except (OSError, ValueError):
        return


def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    stdin: int,
    stdout: int,
    stderr: int,
    keep: Sequence[int] = (),
) -> int:
    """Starts `argv` in a session of its own, with only the three descriptors and `keep` (under their own numbers).

    Returns the pid; the caller reaps it. Raises OSError (FileNotFoundError, PermissionError) when the program cannot be executed.
    """
    parent = os.getpid()
    report_read, report_write = os.pipe()
    try:
        pid = os.fork()
    except OSError:  # the pod's limit of processes: the next generation tries again, and again
        os.close(report_read)
        os.close(report_write)
        raise
    if pid == 0:
        try:
            os.setsid()
            die_with_parent(parent)
            prefer_for_oom()
            for target, source in ((0, stdin), (1, stdout), (2, stderr)):
                os.dup2(source, target)
            for descriptor in keep:
                os.set_inheritable(descriptor, True)
            restore_signals()
            os.execvpe(argv[0], list(argv), dict(env))
        except OSError as error:
            os.write(report_write, str(error.errno or 0).encode())
        finally:
            os._exit(127)
    os.close(report_write)
    errno_text = os.read(report_read, 16)
    os.close(report_read)
    if errno_text:
        os.waitpid(pid, 0)
        raise OSError(int(errno_text), os.strerror(int(errno_text)), argv[0])
    return pid


def restore_signals() -> None:
    """Every disposition and the mask as a fresh process has them (Python ignores SIGPIPE, exec keeps what is ignored)."""
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except (OSError, ValueError, RuntimeError):
                continue
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def children_table() -> Dict[int, List[int]]:
    """Parent pid -> pids of its children, zombies left out, of all processes that can be seen."""
    table: Dict[int, List[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            if fields[0] not in (b"Z", b"X"):
                table.setdefault(int(fields[1]), []).append(int(entry))
    return table


def descendants(roots: Iterable[int]) -> Set[int]:
    """Every living process below `roots`, the roots themselves excluded."""
    quick = _descendants_by_children(roots)
    if quick is not None:
        return quick
    table = children_table()
    found: Set[int] = set()
    waiting = list(roots)
    while waiting:
        for child in table.get(waiting.pop(), ()):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found


def _descendants_by_children(roots: Iterable[int]) -> Optional[Set[int]]:
    """The same by /proc/PID/task/TID/children, which costs per descendant and not per process of the machine; None without it."""
    found: Set[int] = set()
    waiting = list(roots)
    while waiting:
        pid = waiting.pop()
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for task in tasks:
            try:
                with open(f"/proc/{pid}/task/{task}/children") as file:
                    children = [int(word) for word in file.read().split()]
            except FileNotFoundError:
                if not Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").exists():
                    return None
                continue
            except OSError:
                continue
            for child in children:
                if child not in found:
                    waiting.append(child)
                    if not is_zombie(child):
                        found.add(child)
    return found


def is_zombie(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def send(pids: Iterable[int], number: int, group: bool = False) -> None:
    """Signals processes (or the groups they lead); those that are gone or not ours are passed over."""
    for pid in pids:
        try:
            if group:
                os.killpg(pid, number)
            else:
                os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


@dataclass(frozen=True)
class Ended:
    pid: int
    exit_code: Optional[int]
    signal: Optional[int]


def split_status(status: int) -> Tuple[Optional[int], Optional[int]]:
    """(exit code, signal) of a wait status; one of them is None."""
    if os.WIFSIGNALED(status):
        return None, os.WTERMSIG(status)
    return os.WEXITSTATUS(status), None


def reap() -> List[Ended]:
    """Every child that has ended, ours and adopted ones; their zombies are gone afterwards."""
    ended: List[Ended] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        exit_code, number = split_status(status)
        ended.append(Ended(pid, exit_code, number))


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> Optional[float]:
    """The CPUs that our cgroup may use (v2 cpu.max, v1 cfs quota); None where nothing limits them."""
    try:
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            for folder in (root / path.lstrip("/"), root) if not controllers else (root / "cpu" / path.lstrip("/"), root / "cpu"):
                if (folder / "cpu.max").is_file():
                    quota, period = (folder / "cpu.max").read_text().split()
                elif "cpu" in controllers.split(",") and (folder / "cpu.cfs_quota_us").is_file():
                    quota, period = (folder / "cpu.cfs_quota_us").read_text(), (folder / "cpu.cfs_period_us").read_text()
                else:
                    continue
                return int(quota) / int(period) if quota.strip() not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
    return None


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def agent_root() -> str:
    """The folder that holds our package, for `sys.path` of the processes we start."""
    return str(Path(__file__).resolve().parents[2])


def is_installed() -> bool:
    """Whether the package lies where this interpreter looks anyway, and not in a copied folder at the end of its path."""
    return any(os.path.isdir(os.path.join(entry or ".", "lepton_trainer")) for entry in sys.path if entry != agent_root())
