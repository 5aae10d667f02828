"""A user's own loop with the public pieces: killed and resized, it uses each sample once per epoch and goes on where it was."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import runpy
import signal
from collections import Counter
from pathlib import Path

import pytest

import trainer_group

SCRIPT = Path(__file__).parents[3] / "examples" / "own-loop.py"


def run(folder: str, victim: int = -1, step: int = 0) -> str:
    """One rank of the script; the victim dies by SIGKILL when it has written the ledger of `step`."""
    import torch.distributed as dist

    from lepton_trainer import report as reports

    os.environ |= {"LEPTON_CHECKPOINT_DIR": folder, "LEDGER": f"{folder}/ledger", "EPOCHS": "2"}

    def dying(**figures: object) -> None:
        if figures["step"] == step and os.environ.get("RANK", "0") == str(victim):
            os.kill(os.getpid(), signal.SIGKILL)

    reports.report = dying
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    if dist.is_initialized():
        dist.destroy_process_group()
    return said.getvalue()


def test_an_ordinary_script_is_elastic_and_exact(tmp_path: Path) -> None:
    for world, step in ((2, 17), (3, 34)):
        with (
            trainer_group.Group(world, run, str(tmp_path), world - 1, step) as group,
            pytest.raises((ChildProcessError, RuntimeError)),
        ):
            group.results()
    (said,) = trainer_group.run(1, run, str(tmp_path))
    assert float(re.findall(r"[\d.]+", said)[0]) > 0.9

    starts = {int(path.parent.name[4:]): json.loads(path.read_text())["resume"] for path in tmp_path.glob("gen-*/start.json")}
    assert starts[max(starts)]["step"] in (10, 20, 30), "a kill loses what is still being written, and no more"
    used: Counter[int] = Counter()
    generation, limit = max(starts), 10**9
    while True:
        for ledger in tmp_path.glob(f"ledger-{generation}-*"):
            for line in ledger.read_text().splitlines():
                step, *samples = map(int, line.split())
                if step <= limit:
                    used.update(samples)
        resume = starts.get(generation)
        if not resume:
            break
        generation, limit = resume["generation"], resume["step"]
    assert used == Counter(dict.fromkeys(range(1797), 2))
