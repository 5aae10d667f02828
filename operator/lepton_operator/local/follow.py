"""Follows the logs of a run: each line once, as it comes, with the worker's name before it."""

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

    def lines(self) -> Iterator[str]:
        """What has been written since the last call; without the newline, undecodable bytes replaced."""
        for path in sorted(self._run.logs.glob("*.log")):
            if self._worker is not None and not path.stem.rpartition("-")[0].endswith(f"-{self._worker}"):
                continue
            yield from self._new(path)

    def _new(self, path: Path) -> Iterator[str]:
        index = path.stem.rpartition("-")[0].rpartition("-")[2]
        with path.open("rb") as file:
            file.seek(self._at.get(path, 0))
            while chunk := file.read(CHUNK):
                *whole, rest = (self._rest.get(path, b"") + chunk).split(b"\n")
                if len(rest) > CHUNK:
                    whole, rest = [*whole, rest], b""
                self._rest[path] = rest
                for line in whole:
                    yield f"worker {index} | {line.decode('utf-8', 'replace')}"
            self._at[path] = file.tell()
