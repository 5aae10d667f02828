"""The few things that checkpoints need of a place to write to, on a local or shared file system and on an object store.

The one that matters is `create`: it writes a small file only if no file of that name exists, atomically. Everything else may fail
half-way without harm, because nothing counts before a file written by `create` says so.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from lepton_trainer.train.errors import Unreachable, UserError


class Storage(Protocol):
    """Paths are relative to the place, with `/`. A file that is missing or damaged is an OSError, a place that is gone an Unreachable."""

    where: str
    kept: bool
    """False for no place at all: nothing is ever saved there."""
    shared: bool
    """True where a process sees the files that another one wrote without fetching them."""

    def names(self, path: str) -> list[str]:
        """Names of the files and directories directly below `path`; empty where it does not exist."""

    def read(self, path: str) -> bytes: ...
    def create(self, path: str, content: bytes) -> bool:
        """Write a file unless one of that name exists; False where it did."""

    def replace(self, path: str, content: bytes) -> None:
        """Write a file, whatever was there, so that a reader sees the old or the new one and never a part."""

    def folder(self, path: str) -> Path:
        """A local directory, made if necessary, whose files become those below `path` when `publish` is called."""

    def publish(self, path: str, files: list[str]) -> None:
        """Carry `files` of `folder(path)` to the place."""

    def fetch(self, path: str, files: list[str]) -> Path:
        """A local directory that holds `files` of `path`, to be read only."""

    def release(self, path: str) -> None:
        """Forget the local copy that `folder` or `fetch` made, if any."""

    def delete(self, path: str) -> None:
        """Remove a file or a directory with all that is in it; missing is fine."""

    def free(self) -> int | None:
        """Bytes that can still be written; None where there is no such limit."""


class LocalStorage:
    """A directory; also a mounted claim that all processes share."""

    kept = True
    shared = True

    def __init__(self, base: Path) -> None:
        self.base = base
        self.where = str(base)
        try:
            base.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot be made: {error.strerror}", where=str(base), instead="Write another path") from None

    def names(self, path: str) -> list[str]:
        try:
            return sorted(entry.name for entry in (self.base / path).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def read(self, path: str) -> bytes:
        return (self.base / path).read_bytes()

    def create(self, path: str, content: bytes) -> bool:
        target = self.base / path
        name = self._beside(target, content)
        try:
            os.link(name, target)  # unlike a rename, a link refuses an existing name
        except FileExistsError:
            return False
        finally:
            name.unlink()
        self._synchronise(target.parent)
        return True

    def replace(self, path: str, content: bytes) -> None:
        target = self.base / path
        self._beside(target, content).replace(target)
        self._synchronise(target.parent)

    def _beside(self, target: Path, content: bytes) -> Path:
        """The content in a file of another name in the target's directory, on the disk."""
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=".new-")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            Path(name).unlink()
            raise
        return Path(name)

    def _synchronise(self, folder: Path) -> None:
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def folder(self, path: str) -> Path:
        target = self.base / path
        target.mkdir(parents=True, exist_ok=True)
        return target

    def publish(self, path: str, files: list[str]) -> None:
        """Nothing to carry: the files lie where they belong, and were synchronised when they were written."""

    def fetch(self, path: str, files: list[str]) -> Path:
        return self.base / path

    def release(self, path: str) -> None:
        """Nothing was copied."""

    def delete(self, path: str) -> None:
        target = self.base / path
        if target.is_dir():
            shutil.rmtree(target, ignore_errors=True)
        else:
            target.unlink(missing_ok=True)

    def free(self) -> int | None:
        return shutil.disk_usage(self.base).free


class Nowhere(LocalStorage):
    """No place at all, for a job without checkpoints: empty, and whatever is created is forgotten."""

    kept = False

    def __init__(self) -> None:
        self.base, self.where = Path(os.devnull), "nowhere"

    def create(self, path: str, content: bytes) -> bool:
        return True

    def replace(self, path: str, content: bytes) -> None:
        """Forgotten, too."""


class RemoteStorage:
    """Any object store that fsspec knows by its URL; conditional creation must be supported there (S3's If-None-Match is)."""

    kept = True
    shared = False

    def __init__(self, url: str) -> None:
        import fsspec

        self.where = url.rstrip("/")
        options: dict[str, Any] = {"use_listings_cache": False} if url.startswith("s3") else {}
        try:
            self.files, base = fsspec.core.url_to_fs(self.where, **options)
            self.base = str(base).rstrip("/")
            self.files.ls(self.base, detail=False)
        except FileNotFoundError:
            pass
        except (ImportError, ValueError) as error:
            raise UserError(str(error), where=url, instead="Write a directory or s3://bucket/prefix") from None
        except Exception as error:
            raise Unreachable(
                f"cannot be reached: {type(error).__name__}: {error}",
                where=url,
                instead="See that the endpoint (AWS_ENDPOINT_URL), the credentials and the bucket are right",
            ) from None
        self.local = Path(tempfile.mkdtemp(prefix="lepton-checkpoint-"))

    def _full(self, path: str) -> str:
        return f"{self.base}/{path}" if path else self.base

    def names(self, path: str) -> list[str]:
        try:
            with self._reading(path):
                return sorted(str(name).rstrip("/").rsplit("/", 1)[-1] for name in self.files.ls(self._full(path), detail=False))
        except FileNotFoundError:
            return []

    def read(self, path: str) -> bytes:
        with self._reading(path):
            content: bytes = self.files.cat_file(self._full(path))
        return content

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        """A store that cannot be reached must never look like a damaged file: only a missing one and a wrong checksum are that."""
        try:
            yield
        except FileNotFoundError:
            raise
        except Exception as error:
            if "checksum" in type(error).__name__.lower():
                raise OSError(f"the store's own checksum is wrong: {error}") from None
            what = f"{path} cannot be read: {type(error).__name__}: {error}"
            raise Unreachable(what, where=self.where, instead="See that the endpoint is there, and start again") from None

    def create(self, path: str, content: bytes) -> bool:
        try:
            self.files.pipe_file(self._full(path), content, mode="create")
        except FileExistsError:
            return False
        return True

    def replace(self, path: str, content: bytes) -> None:
        self.files.pipe_file(self._full(path), content)

    def folder(self, path: str) -> Path:
        target = self.local / path
        target.mkdir(parents=True, exist_ok=True)
        return target

    def publish(self, path: str, files: list[str]) -> None:
        for name in files:
            self.files.put_file(str(self.local / path / name), self._full(f"{path}/{name}"))

    def fetch(self, path: str, files: list[str]) -> Path:
        target = self.folder(path)
        for name in files:
            with self._reading(f"{path}/{name}"):
                self.files.get_file(self._full(f"{path}/{name}"), str(target / name))
        return target

    def release(self, path: str) -> None:
        shutil.rmtree(self.local / path, ignore_errors=True)

    def delete(self, path: str) -> None:
        if self.files.exists(self._full(path)):
            self.files.rm(self._full(path), recursive=True)

    def free(self) -> int | None:
        return None


def open_storage(path: str) -> Storage:
    """The storage of a directory or a URL; of nothing where the path is empty.

    Raises:
        UserError: it cannot be made, or is no such place.
        Unreachable: it does not answer.
    """
    if not path:
        return Nowhere()
    return RemoteStorage(path) if "://" in path else LocalStorage(Path(path).expanduser().absolute())
