"""`make test`: every part in order, each with its time; the first that fails ends it. Nothing is skipped: a missing cluster is a failure.

While the quick parts run, what the cluster needs is built beside them, once on a machine.
"""

import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from cluster import substrate

CHECKOUT = Path(__file__).parents[1]
LIFE = "cluster's own life"
PYTEST = [sys.executable, "-m", "pytest", "-q"]


@dataclass
class Part:
    name: str
    commands: list[list[str]]
    seconds: float = 0.0
    ran: bool = field(default=False)


PARTS = [
    Part("lint", [["make", "-s", "lint"]]),
    Part("unit", [[*PYTEST, "-n", "auto", "--dist", "worksteal", "tests/unit"]]),
    Part("local mode", [[*PYTEST, "tests/local"]]),
    Part("cluster", [[sys.executable, "-m", "cluster", "up"], [sys.executable, "-m", "cluster", "images"], [*PYTEST, "tests/cluster"]]),
    Part(LIFE, [[*PYTEST, "tests/cluster_lifecycle"]]),
]


def main(wanted: list[str]) -> int:
    """`wanted`: names of parts, none for all. The exit code of the first command that failed, else 0."""
    if unknown := set(wanted) - {part.name for part in PARTS}:
        print(f"no part is named {', '.join(sorted(unknown))}: they are {', '.join(part.name for part in PARTS)}", file=sys.stderr)
        return 2
    parts = [part for part in PARTS if not wanted or part.name in wanted]
    if (found := substrate.choose()) != substrate.EMBEDDED:
        print(f"== the cluster is {found}: its own life is not tested, for it is not ours", flush=True)
        parts = [part for part in parts if part.name != LIFE]
    log = CHECKOUT / ".lepton" / "prepare.log"
    log.parent.mkdir(exist_ok=True)
    preparing = None
    with log.open("w") as output:
        if any(part.name == "cluster" for part in parts):
            preparing = subprocess.Popen(
                ["nice", "-n", "10", sys.executable, "-m", "cluster", "prepare"], cwd=CHECKOUT, stdout=output, stderr=subprocess.STDOUT
            )
        code = 0
        for part in parts:
            began = time.monotonic()
            if part.name == "cluster" and preparing is not None and preparing.wait() != 0:
                print(log.read_text(), flush=True)
            code = run(part)
            part.seconds, part.ran = time.monotonic() - began, True
            if code:
                break
        if preparing is not None and preparing.poll() is None:
            preparing.terminate()
    for part in parts:
        print(f"== {part.name}: {f'{part.seconds:.0f} s' if part.ran else 'not reached'}")
    print(f"== {'FAILED' if code else 'all parts passed'}")
    return code


def run(part: Part) -> int:
    for command in part.commands:
        print(f"== {part.name}: {' '.join(command[command.index('-m') + 1 :] if '-m' in command else command)}", flush=True)
        code = subprocess.run(command, cwd=CHECKOUT, check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
