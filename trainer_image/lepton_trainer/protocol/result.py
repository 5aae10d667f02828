"""What an agent leaves behind as its pod's termination message: how its work ended, for an operator that was not listening.

Kubernetes keeps at most 4,096 bytes of it, so the exits are shortened until it fits. Standard library only, Python >= 3.9.
"""

import json
from dataclasses import dataclass, replace
from typing import Tuple

from lepton_trainer.protocol.frames import ProtocolError, from_plain, to_plain
from lepton_trainer.protocol.messages import ProcessExit, Progress

LIMIT = 4096


@dataclass(frozen=True)
class Result:
    """`verdict` is one of messages.COMPLETE, JOB_FAILED, REMOVED, or empty where the agent left without one (SIGTERM)."""

    verdict: str
    generation: int = 0
    reason: str = ""  # why the agent ended, in words
    exits: Tuple[ProcessExit, ...] = ()
    progress: Progress = Progress()  # noqa: RUF009


def dump(result: Result) -> str:
    """JSON of at most `LIMIT` bytes."""
    for exits, text in ((8, 2048), (4, 1024), (2, 512), (1, 256), (1, 0), (0, 0)):
        short = tuple(
            replace(
                entry,
                error=entry.error[: text + 100],
                traceback=entry.traceback[-text:] if text else "",
                log_tail=entry.log_tail[-text:] if text else "",
            )
            for entry in result.exits[:exits]
        )
        progress = result.progress if text else replace(result.progress, metrics={}, checkpoint_path="")
        plain = to_plain(replace(result, exits=short, progress=progress, reason=result.reason[:300]))
        message = json.dumps(plain, separators=(",", ":"), ensure_ascii=False)
        if len(message.encode("utf-8", "replace")) <= LIMIT:
            return message
    raise AssertionError("a result without exits fits")


def load(message: str) -> Result:
    """The result in a termination message; raises `ProtocolError` where it is none (a container that was OOM-killed leaves log lines)."""
    try:
        plain = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from None
    result: Result = from_plain(Result, plain)
    return result
