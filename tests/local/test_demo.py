"""`make demo-local`, which is also `examples/digits.yaml` unchanged in local mode: what it shows is true, and the digits are learnt."""

import os
import re
import subprocess
import sys
from pathlib import Path

from checkout import CHECKOUT

ACCURACY = 0.97
PATIENCE_SECONDS = 400


def test_digits_lose_worker_0_in_the_middle_and_are_learnt_all_the_same(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEPTON_")}
    environment = {**kept, "LEPTON_HOME": str(tmp_path / "state" / "lepton")}
    command = [sys.executable, "-m", "demo.local"]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    assert re.search(r"worker 0 \(digits-0-\w+, pid \d+\) was sent SIGKILL", told), told
    assert re.search(r"samples lost +0\n", told), told
    (accuracy,) = re.findall(r"held-out accuracy ([\d.]+)", told)
    assert float(accuracy) >= ACCURACY
