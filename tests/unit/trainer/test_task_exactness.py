"""Tables and rankings come out the same on any number of processes, augmentation, negatives, threshold and figures included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import trainer_group
import trainer_runs as runs
from lepton_trainer.train.config import parse


def ratings(base: Path) -> Path:
    rows = [f"{user},{(user * 3 + turn * 7) % 60},{turn}" for user in range(40) for turn in range(20)]
    file = base / "taken.csv"
    file.write_text("\n".join(["user,item,time", *rows]))
    return file


@pytest.mark.parametrize("task", ["tabularClassification", "recommendation"])
def test_losses_and_figures_do_not_depend_on_the_number_of_processes(task: str, tmp_path: Path) -> None:
    own: dict[str, Any] = (
        {"decision": {"miss": 3.0}}
        if task == "tabularClassification"
        else {"data": {"source": "csv", "path": str(ratings(tmp_path))}, "objective": "ranking", "negatives": 5}
    )
    for world in (1, 2):
        settings = {
            **own,
            "training": {"steps": 8, "globalBatch": 33, "ema": 0.9},
            "checkpoint": {"path": str(tmp_path / str(world))},
            "output": {"everySteps": 1, "plots": False},
        }
        trainer_group.run(world, runs.train, parse({task: settings}))
    one, two = runs.losses(tmp_path / "1"), runs.losses(tmp_path / "2")
    assert len(one) == 8 and max(abs(two[step] - one[step]) / one[step] for step in one) < 1e-5
    first, second = (json.loads((tmp_path / world / "result.json").read_text()) for world in "12")
    assert first.keys() == second.keys()
    assert all(second[name] == pytest.approx(value, abs=2e-3) for name, value in first.items())
