"""A training of many rounds without torch: its arguments and variables decide the accuracy, and it notes what it was given."""

import argparse
import json
import os
import time
from pathlib import Path

from lepton_trainer.report import checkpoint_dir, report

parser = argparse.ArgumentParser()
parser.add_argument("--accuracy", default="")
parser.add_argument("--metric", default="accuracy", help="the name under which it is reported")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--wait", default="", help="for this file, after half of the steps, in every round but the first")
parser.add_argument("--notes", default="")
options = parser.parse_args()

number, directory = os.environ.get("LEPTON_ROUND", ""), checkpoint_dir()
if options.notes and os.environ["RANK"] == "0":
    note = {"round": number, "generation": os.environ["LEPTON_GENERATION"], "directory": directory, "parent": os.getppid()}
    with Path(options.notes).open("a") as file:
        file.write(json.dumps(note) + "\n")
state = Path(directory or ".") / f"step-{os.environ['RANK']}"
step = int(state.read_text()) if directory and state.exists() else 0
while step < options.steps:
    step += 1
    report(step=step, loss=1 / step, samples=8, total_steps=options.steps)
    if directory:
        state.write_text(str(step))
    while options.wait and number != "1" and step == options.steps // 2 and not Path(options.wait).exists():
        time.sleep(0.02)
    time.sleep(0.01)
if options.accuracy:
    report(metrics={options.metric: float(options.accuracy) + float(os.environ.get("BONUS", "0"))})
