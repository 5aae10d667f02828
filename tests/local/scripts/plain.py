"""A script without torch: what a test names is done in order."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from lepton_trainer.report import report

rank = os.environ["RANK"]
for word in sys.argv[1:]:
    what, _, value = word.partition("=")
    if what == "sleep":
        time.sleep(float(value))
    elif what == "exit":
        sys.exit(int(value))
    elif what == "kill":
        os.kill(os.getpid(), getattr(signal, value))
    elif what == "say":
        print(f"{value} {rank}", flush=True)
    elif what == "lines":  # one each second
        for number in range(int(value)):
            print(f"line {number} of {rank}", flush=True)
            time.sleep(1.0)
    elif what == "returns":  # a progress bar: value seconds of carriage returns only
        end = time.monotonic() + float(value)
        number = 0
        while time.monotonic() < end:
            number += 1
            sys.stdout.write(f"\r{number} of many")
            sys.stdout.flush()
            time.sleep(0.05)
    elif what == "long":  # a line of so many bytes
        sys.stdout.write("x" * (int(value) - 4) + "end\n")
        sys.stdout.flush()
    elif what == "bytes":  # no UTF-8, NUL, escape codes, and a glyph across the limit of what is kept
        os.write(1, b"latin \xe9\xe8 nul \x00 esc \x1b[31mred\x1b[0m\n")
        os.write(1, b"a" * 4095 + "\u00e9\u4e16\U0001f600".encode() * 700 + b"\nlast words\n")
    elif what == "python":
        print(f"python {sys.executable}", flush=True)
        print("which", __import__("shutil").which("python"), flush=True)
    elif what == "note":
        with Path(value).open("a") as file:
            file.write(f"{os.environ['LEPTON_GENERATION']} {rank} {os.getpid()}\n")
    elif what == "steps":  # reported as a training would
        for step in range(1, int(value) + 1):
            report(step=step, loss=1 / step, samples=8, total_steps=int(value))
            time.sleep(0.01)
    elif what == "daemons":  # two that mean to outlive us, one of them without our environment
        for env in ({}, dict(os.environ)):
            daemon = subprocess.Popen(["/bin/sleep", "300"], start_new_session=True, env=env)
            with Path(value).open("a") as file:
                file.write(f"{daemon.pid}\n")
    elif what == "until":  # a file exists
        while not Path(value).exists():
            time.sleep(0.02)
