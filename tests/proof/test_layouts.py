"""With four CPU processes, every layout follows the loss of one process within 1e-5 over 50 steps in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trainer_group
import trainer_runs as runs

STEPS: dict[str, Any] = {"training": {"steps": 50, "globalBatch": 16}, "checkpoint": {"everySteps": 25}}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "DDP": (4, {"strategy": "ddp"}),
    "FSDP2": (4, {"strategy": "fsdp"}),
    "TP": (2, {"tensor": 2}),
    "PP": (4, {"pipeline": 4}),
    "DDP x TP": (4, {"strategy": "ddp", "tensor": 2}),
    "FSDP2 x TP": (4, {"strategy": "fsdp", "tensor": 2}),
    "PP x DP": (4, {"strategy": "ddp", "pipeline": 2}),
}


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    out = tmp_path_factory.mktemp("alone")
    trainer_group.run(1, runs.train, runs.language(text, out, **STEPS))
    return runs.losses(out)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_follows_one_process(name: str, alone: dict[int, float], text: Path, tmp_path: Path) -> None:
    world, parallelism = LAYOUTS[name]
    trainer_group.run(world, runs.train, runs.language(text, tmp_path, **STEPS, parallelism=parallelism))
    found = runs.losses(tmp_path)
    assert found.keys() == alone.keys() and len(found) == 50
    worst = max(abs(found[step] - alone[step]) / alone[step] for step in alone)
    print(f"{name}: {world} processes, largest relative difference of the loss over 50 steps {worst:.1e}")
    assert worst < 1e-5
