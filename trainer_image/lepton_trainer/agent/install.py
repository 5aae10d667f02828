"""Copies the standard-library part of the package into a folder: how an init container brings the agent into any image."""

import os
import shutil
from pathlib import Path

PARTS = ("__init__.py", "__main__.py", "report.py", "protocol", "agent")


def install(target: str) -> None:
    """Writes `target`/lepton_trainer anew, readable by every user; a version that is there is replaced as a whole."""
    source = Path(__file__).resolve().parents[1]
    destination = Path(target) / "lepton_trainer"
    fresh = Path(target) / f".lepton_trainer-{os.getpid()}"
    fresh.mkdir(parents=True)
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, fresh / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source / part, fresh / part)
    for path in [fresh, *fresh.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    if destination.exists():
        shutil.rmtree(destination)
    fresh.rename(destination)
