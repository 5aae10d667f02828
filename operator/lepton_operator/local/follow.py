"""Follows the logs of a run: each line once, as it comes, with the worker's index before it."""

from collections.abc import Iterator
from pathlib import Path

from lepton_operator.local.store import RunDirectory

CHUNK = 1 << 20
"""Bytes of one log that are read at a time; a line longer than this is passed on in pieces."""


class Follower:
    def __init__(self, run: RunDirectory, worker: int | None = None, *, from_start: bool = False) -> None:
        self._run = run
        self._worker = worker
        self._at: dict[Path, int] = {}
        self._rest: dict[Path, bytes] = {}
        if not from_start:
            self._at = {path: path.stat().st_size for path in run.logs.glob("*.log")}

    def lines(self, last: bool = False) -> Iterator[str]:
        """What has been written since the last call; without the newline, undecodable bytes replaced.

        `last`: nothing will follow, so a line without an end is one, too.
        """
        for path in sorted(self._run.logs.glob("*.log")):
            index = path.stem.rpartition("-")[0].rpartition("-")[2]
            if self._worker is None or index == str(self._worker):
                yield from (f"worker {index} | {line.decode('utf-8', 'replace')}" for line in self._new(path, last))

    def _new(self, path: Path, last: bool) -> Iterator[bytes]:
        with path.open("rb") as file:
            file.seek(self._at.get(path, 0))
            while chunk := file.read(CHUNK):
                self._at[path] = file.tell()
                *whole, rest = (self._rest.get(path, b"") + chunk).split(b"\n")
                if len(rest) > CHUNK:
                    whole, rest = [*whole, rest], b""
                self._rest[path] = rest
                yield from whole
        if last and self._rest.get(path):
            yield self._rest.pop(path)
