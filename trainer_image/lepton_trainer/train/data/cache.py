"""Prepared data, kept by the hash of what it was made from, made once per job however many processes ask, and where it has no claim, once
per machine.

The first process takes a lock and prepares; the others wait and map the same files. A directory appears by one rename, so it is
either whole or not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_trainer.protocol import names
from lepton_trainer.report import checkpoint_dir
from lepton_trainer.train.errors import UserError

_FORMAT = 1

Arrays = Mapping[str, NDArray[Any]]
Prepared = tuple[dict[str, NDArray[Any]], dict[str, Any]]


def root() -> Path:
    """Where prepared data is kept: LEPTON_CACHE, else beside the job's checkpoints, where all its workers find it, else the user's cache
    directory, else the temporary one.

    Raises:
        UserError: the place cannot be written.
    """
    named, checkpoints = os.environ.get(names.CACHE), checkpoint_dir()
    home = os.environ.get("XDG_CACHE_HOME") or (str(Path.home() / ".cache") if os.environ.get("HOME") else "")
    places = (
        [Path(named)]
        if named
        else [
            Path(checkpoints).parent / "cache" if checkpoints else None,
            Path(home) / "lepton" if home else None,
            Path(tempfile.gettempdir()) / f"lepton-{os.getuid()}",
        ]
    )
    for place in places:
        if place is None:
            continue
        try:
            (place / "data").mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(place / "data", os.W_OK):
            return place
    raise UserError(
        "the cache for prepared data cannot be written",
        where=str(places[0] or places[-1]),
        instead="Set LEPTON_CACHE to a directory that can be",
    )


def digest_of_files(files: Iterable[Path], base: Path) -> str:
    """SHA-256 over the names (relative to `base`) and contents of `files`, in the order given."""
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.relative_to(base)}\0".encode())
        with file.open("rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()


def prepared(content: str, settings: Mapping[str, Any], make: Callable[[], tuple[Arrays, dict[str, Any]]]) -> Prepared:
    """The arrays and facts that `make` returns for this content and these settings, from the cache where they are known.

    Args:
        content: a hash of the source.
        settings: what else the result depends on; must be JSON.
        make: called at most once at a time per machine; the facts it returns must be JSON.
    Returns:
        read-only, memory-mapped arrays by name, and the facts with `key` added.
    """
    text = json.dumps([_FORMAT, content, settings], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    base = root() / "data"
    target = base / key
    with _turn(base / f"{key}.lock"):
        if not (target / "facts.json").exists():
            arrays, facts = make()
            try:
                _keep(base, target, arrays, {**facts, "key": key})
            except OSError as error:
                raise UserError(
                    f"prepared data cannot be kept: {error.strerror}",
                    where=str(base),
                    instead="Make room, or set LEPTON_CACHE to another place",
                ) from None
    facts = json.loads((target / "facts.json").read_text())
    return {file.stem: np.load(file, mmap_mode="r") for file in sorted(target.glob("*.npy"))}, facts


def _keep(base: Path, target: Path, arrays: Arrays, facts: Mapping[str, Any]) -> None:
    """Write everything beside `target`, which then appears at once; where somebody else was quicker, theirs stays."""
    work = Path(tempfile.mkdtemp(dir=base, prefix=f".{target.name}-"))
    try:
        for name, array in arrays.items():
            np.save(work / f"{name}.npy", array)
        (work / "facts.json").write_text(json.dumps(facts))
        try:
            work.rename(target)
        except OSError:
            if not (target / "facts.json").exists():
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One process at a time; on a file system without locks all at once, which costs time and nothing else."""
    with path.open("w") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
