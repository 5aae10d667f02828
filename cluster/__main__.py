"""The command line: `python3 -m cluster up`, `down`, `status`, and so on; see `--help`."""

import argparse
import os
import sys
import time

from cluster import images, substrate
from cluster.places import locked
from cluster.terminal import Refused, say


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m cluster", description="A real Kubernetes for development and tests, and our images in it.")
    parser.add_argument("command")
    arguments = parser.parse_args()
    started = time.monotonic()
    try:
        if arguments.command == "images":
            print(images.load())
        else:
            with locked("cluster"):
                if arguments.command == "up":
                    substrate.up()
                else:
                    substrate.down()
    except Refused as refusal:
        say(f"cluster: {refusal}")
        return 1
    say(f"{time.monotonic() - started:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
