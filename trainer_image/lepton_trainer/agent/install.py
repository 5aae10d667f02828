"""Copies the standard-library part of the package into a folder: how an init container brings the agent into any image."""

import os
import shutil
from pathlib import Path

PARTS = ("__init__.py", "__main__.py", "report.py", "protocol", "agent")


class InstallError(Exception):
    """`args[0]` says which folder cannot be written, why, and what to do."""


def install(target: str) -> None:
    """Writes `target`/lepton_trainer anew, readable by every user; what is there is replaced as a whole. Raises `InstallError`."""
    fresh = Path(target) / f".lepton_trainer-{os.getpid()}"
    try:
        _install(Path(target) / "lepton_trainer", fresh)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        why = getattr(error, "strerror", None) or str(error)[:300]
        raise InstallError(
            f"the agent cannot be copied to {target} ({why}): give it a folder that this user may write, with 1 MiB of room"
        ) from None


def _install(destination: Path, fresh: Path) -> None:
    source = Path(__file__).resolve().parents[1]
    fresh.mkdir(parents=True)
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, fresh / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source / part, fresh / part)
    for path in [fresh, *fresh.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    if destination.is_dir() and not destination.is_symlink():
        shutil.rmtree(destination)
    elif destination.exists() or destination.is_symlink():
        destination.unlink()
    fresh.rename(destination)
