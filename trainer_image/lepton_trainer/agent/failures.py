"""Why a rank ended, in one sentence that a user can act on.

The sources: its exit status, its output, its error file, and the OOM counter of the cgroup.
"""

import json
import re
from pathlib import Path
from typing import Optional, Tuple

from lepton_trainer.agent.logs import tail
from lepton_trainer.agent.processes import signal_name

TRACEBACK_BYTES = 4096
LOG_BYTES = 2048
NEAR_END_LINES = 60
"""A traceback further from the end of the output than this was handled: it is not why the process ended."""

_HEADER = "Traceback (most recent call last):"
_FRAME = re.compile(r'^\s*File "([^"]+)", line (\d+)', re.MULTILINE)
_EXCEPTION = re.compile(r"^(?:[\w.]+\.)?([A-Z_]\w*)(?:: (.*)|)$")
_NOT_USER_CODE = re.compile(r"site-packages|dist-packages|/lib/python3|/lepton_trainer/(?:agent|protocol|report\.py)|^<")
_TORCH_PREFIX = re.compile(r"^\[rank\d+\]: ?")  # what torch.distributed's excepthook puts before every line
_CHAIN = ("During handling of the above exception", "The above exception was the direct cause")

# What a rank says that failed inside a collective because another one went away or stopped.
_WITNESS = re.compile(
    r"Connection closed by peer|Read error \[|Write error \[|writev \[|Connection reset by peer|Socket closed|Broken pipe"
    r"|DistBackendError|DistNetworkError|DistStoreError|NCCL error|ncclRemoteError|ncclSystemError|ncclInternalError"
    r"|Watchdog caught collective operation timeout|\[c10d\].*(?:timed out|failed)|wait timeout after|Timed out waiting \d+ms"
    r"|Gloo connectFullMesh failed|gloo/transport"
)


def find_traceback(text: str) -> str:
    """The traceback that ended the process: the last one of its output, chained ones included, if it stands near the end; else empty.

    A syntax error in the main script has no header; its block starts at the `File` line.
    """
    lines = [_TORCH_PREFIX.sub("", line) for line in text.splitlines()]
    start = _last_start(lines)
    if start is None:
        return ""
    end = _block_end(lines, start)
    if len(lines) - end > NEAR_END_LINES:
        return ""
    return "\n".join(lines[start:end])


def _last_start(lines: "list[str]") -> Optional[int]:
    starts = [index for index, line in enumerate(lines) if line == _HEADER]
    if not starts:
        frames = [index for index, line in enumerate(lines) if line.startswith('  File "') and _block_is_syntax(lines, index)]
        return frames[-1] if frames else None
    start = starts[-1]
    for earlier in reversed(starts[:-1]):  # chained: "During handling ..." stands between two blocks
        between = lines[earlier:start]
        if any(line.startswith(_CHAIN) for line in between):
            start = earlier
        else:
            break
    return start


def _block_is_syntax(lines: "list[str]", index: int) -> bool:
    return any(re.match(r"(Syntax|Indentation|Tab)Error: ", line) for line in lines[index + 1 : index + 6])


def _block_end(lines: "list[str]", start: int) -> int:
    """One past the last line of the last exception's message that still looks like a part of the traceback."""
    end = start
    for index in range(start, len(lines)):
        line = lines[index]
        if _EXCEPTION.match(line) and not line.startswith(" ") and line != _HEADER:
            end = index + 1
    return end if end > start else len(lines)


def sentence(traceback: str) -> str:
    """`ValueError: bad label 11 (train.py:42)`: the last exception and the deepest frame of the user's own code."""
    lines = traceback.splitlines()
    last = max((index for index, line in enumerate(lines) if line == _HEADER), default=0)
    block = lines[last:]
    exception = next((line for line in block[1:] if _EXCEPTION.match(line) and not line.startswith(" ")), block[-1] if block else "")
    frames = _FRAME.findall("\n".join(block))
    own = [frame for frame in frames if not _NOT_USER_CODE.search(frame[0])] or frames
    where = f" ({Path(own[-1][0]).name}:{own[-1][1]})" if own else ""
    return exception.strip()[:500] + where


def is_witness(text: str, exit_code: Optional[int], number: Optional[int]) -> bool:
    """Whether the process failed inside a collective, so that most likely another one is the cause."""
    return (bool(exit_code) or number == 6) and bool(_WITNESS.search(text))


def read_error_file(path: Path) -> Tuple[str, str]:
    """(message, traceback) of torch.distributed.elastic's error file, which `@record` and our warm ranks write; empty without one."""
    try:
        message = json.loads(path.read_text("utf-8", "replace"))["message"]
        if isinstance(message, str):
            return message, ""
        return str(message["message"]), str(message["extraInfo"]["py_callstack"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""


def explain(text: str, exit_code: Optional[int], number: Optional[int], oom_killed: bool, error_file: Path) -> Tuple[str, str, bool]:
    """(error, traceback, witness) of a process that failed; `text` is the cleaned end of its output."""
    message, traceback = read_error_file(error_file)
    if not traceback and number in (None, 2, 6):  # a KeyboardInterrupt, an abort
        traceback = find_traceback(text)
    last_lines = [line.strip() for line in text.splitlines() if line.strip()]
    if oom_killed:
        error = "killed by the kernel for memory (OOM): raise workers.resources.limits.memory or lower the batch size"
    elif traceback:
        error = sentence(traceback)
    elif number is not None:
        error = f"ended by {signal_name(number)}"
    else:
        error = message[:500] or (last_lines[-1][:500] if last_lines else f"exit code {exit_code}, without any output")
    about = traceback.splitlines()[-8:] if traceback else last_lines[-40:]
    witness = not oom_killed and is_witness("\n".join(about), exit_code, number)
    return error, tail(traceback, TRACEBACK_BYTES), witness


def log_tail(text: str) -> str:
    return tail(text.rstrip("\n"), LOG_BYTES)


class OomCounter:
    """The OOM kills of our cgroup, as far as they can be read (v2 memory.events, v1 memory.oom_control)."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> None:
        self._files = [path for path in _candidates(root, membership) if path.is_file()][:1]
        self._seen = self._read()

    def risen(self) -> bool:
        """Whether the kernel has killed something here since the last question."""
        now = self._read()
        risen, self._seen = now > self._seen, now
        return risen

    def _read(self) -> int:
        total = 0
        for path in self._files:
            try:
                for line in path.read_text().splitlines():
                    if line.startswith("oom_kill "):
                        total += int(line.split()[1])
            except (OSError, ValueError, IndexError):
                continue
        return total


def _candidates(root: Path, membership: Path) -> "list[Path]":
    paths = []
    try:
        for line in membership.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                paths.append(root / path.lstrip("/") / "memory.events")
            elif "memory" in controllers.split(","):
                paths.append(root / "memory" / path.lstrip("/") / "memory.oom_control")
    except (OSError, ValueError):
        pass
    return [*paths, root / "memory.events", root / "memory" / "memory.oom_control"]
