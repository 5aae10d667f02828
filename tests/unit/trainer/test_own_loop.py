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
from typing import Any

import pytest
from torch import Tensor

import trainer_group

SCRIPT = Path(__file__).parents[3] / "examples" / "own-loop.py"


def run(folder: str, victim: int = -1, step: int = 0) -> str:
    """One rank of the script; the victim dies by SIGKILL when it has written the ledger of `step`."""
    import torch.distributed as dist

    from lepton_trainer import report as reports
    from lepton_trainer.train.checkpoint import Checkpointer

    os.environ |= {"LEPTON_CHECKPOINT_DIR": folder, "LEDGER": f"{folder}/ledger", "EPOCHS": "2"}

    def dying(**figures: object) -> None:
        if figures["step"] == step and os.environ.get("RANK", "0") == str(victim):
            os.kill(os.getpid(), signal.SIGKILL)

    restore = Checkpointer.restore

    def noting(self: Checkpointer, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        """Start files go with the checkpoints that nobody needs any more; the audit needs them all."""
        found = restore(self, tensors)
        origin = {"generation": self.last.generation, "step": self.last.step} if self.last else None
        Path(folder, f"origin-{self.generation}.json").write_text(json.dumps(origin))
        return found

    Checkpointer.restore = noting  # type: ignore[method-assign]
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

    starts = {int(path.stem[7:]): json.loads(path.read_text()) for path in tmp_path.glob("origin-*.json")}
    assert starts[max(starts)]["step"] in (10, 20, 30), "a kill loses what is still being written, and no more"
    used: Counter[int] = Counter()
    generation, limit = max(starts), 10**9
    while True:
        for ledger in tmp_path.glob(f"ledger-{generation}-*"):
            for line in ledger.read_text().splitlines():
                step, *samples = map(int, line.split())
                if step <= limit:
                    used.update(samples)
        resume = starts[generation]
        if not resume:
            break
        generation, limit = resume["generation"], resume["step"]
    assert used == Counter(dict.fromkeys(range(1797), 2))
