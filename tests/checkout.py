"""The files of this checkout as git knows them: those that are committed, and new ones that it does not ignore."""

import subprocess
from functools import cache
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


@cache
def tracked(suffix: str = "") -> tuple[Path, ...]:
    """Existing files, relative to the checkout, whose name ends with `suffix`."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=CHECKOUT, capture_output=True, check=True).stdout.decode().split("\0")
    return tuple(Path(name) for name in sorted(set(names)) if name.endswith(suffix) and (CHECKOUT / name).is_file())
