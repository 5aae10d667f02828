"""Reads the API server's audit log: who wrote what, and when. The one honest count of what a job costs the control plane."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True, slots=True)
class Write:
    user: str
    verb: str
    resource: str  # "pods", "pods/status", "leptontrainingjobs/status", ...
    namespace: str
    name: str
    received: float  # unix seconds
    answered: float
    code: int


class AuditLog:
    """What is written from the moment of its making on, rotated files included."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._since = datetime.now().timestamp()

    def writes(self, namespace: str = "") -> Iterator[Write]:
        """Answered writes since then, oldest first; of one namespace, where one is named."""
        files = sorted(self._path.parent.glob(f"{self._path.stem}*{self._path.suffix}"), key=lambda p: p.stat().st_mtime)
        for file in files:
            if file.stat().st_mtime < self._since:
                continue
            with file.open() as lines:
                for line in lines:
                    write = _parse(line)
                    if write is not None and write.received >= self._since and (not namespace or write.namespace == namespace):
                        yield write


def _parse(line: str) -> Write | None:
    try:
        entry = json.loads(line)
    except ValueError:
        return None  # the last line, half written
    if entry.get("stage") != "ResponseComplete" or entry.get("verb") not in WRITES:
        return None
    about = entry.get("objectRef") or {}
    resource = about.get("resource", "") + (f"/{about['subresource']}" if about.get("subresource") else "")
    return Write(
        user=entry["user"]["username"],
        verb=entry["verb"],
        resource=resource,
        namespace=about.get("namespace", ""),
        name=about.get("name", ""),
        received=_time(entry["requestReceivedTimestamp"]),
        answered=_time(entry["stageTimestamp"]),
        code=int((entry.get("responseStatus") or {}).get("code", 0)),
    )


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
