"""Every parallel layout computes what one process computes, and continues from any other layout's checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trainer_group
import trainer_runs as runs
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.parallel import Layout, layout
from lepton_trainer.train.pipeline import micro_batch
from lepton_trainer.train.settings.shared import Parallelism, Training

SHORT: dict[str, Any] = {"training": {"steps": 8, "globalBatch": 16}, "checkpoint": {"everySteps": 4}}


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    out = tmp_path_factory.mktemp("alone")
    trainer_group.run(1, runs.train, runs.language(text, out, **SHORT))
    return runs.losses(out)


def test_sharded_split_and_piped_runs_follow_one_process_and_take_over_from_one_another(
    text: Path, alone: dict[int, float], tmp_path: Path
) -> None:
    """Four steps sharded over two processes, the next four in two stages; then eight split in two."""
    half = {**SHORT["training"], "steps": 8}
    sharded = runs.language(text, tmp_path / "a", training=half, checkpoint={"everySteps": 4}, parallelism={"strategy": "fsdp"})
    with (
        trainer_group.Group(2, runs.train_and_die, sharded, 0, 5) as group,
        pytest.raises((ChildProcessError, RuntimeError)),
    ):
        group.results()
    trainer_group.run(2, runs.train, runs.language(text, tmp_path / "a", **SHORT, parallelism={"pipeline": 2}))
    trainer_group.run(2, runs.train, runs.language(text, tmp_path / "b", **SHORT, parallelism={"tensor": 2}))
    for found in (runs.losses(tmp_path / "a"), runs.losses(tmp_path / "b")):
        assert found.keys() == alone.keys()
        assert max(abs(found[step] - alone[step]) / alone[step] for step in alone) < 1e-5


@pytest.mark.parametrize(
    ("settings", "world", "message"),
    [
        ({"tensor": 2}, 3, "tensor 2 x pipeline 1 does not divide 3 processes. Start a multiple of 2 processes, or lower them"),
        ({"tensor": 2, "pipeline": 2}, 6, "tensor 2 x pipeline 2 does not divide 6 processes"),
    ],
)
def test_a_layout_that_does_not_fit_the_world_is_named(settings: dict[str, Any], world: int, message: str) -> None:
    with pytest.raises(UserError) as caught:
        layout(Parallelism.model_validate(settings), world, 1000, 0)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "world", "parameters", "memory", "chosen"),
    [
        ({}, 1, 10**9, 10**10, Layout(1, 1, 1, False)),
        ({}, 8, 10**8, 10**10, Layout(8, 1, 1, False)),
        ({}, 8, 10**9, 10**10, Layout(8, 1, 1, True)),
        ({}, 8, 10**9, 0, Layout(8, 1, 1, False)),
        ({"strategy": "ddp"}, 8, 10**9, 10**10, Layout(8, 1, 1, False)),
        ({"strategy": "fsdp", "tensor": 4}, 8, 1000, 0, Layout(2, 4, 1, True)),
        ({"pipeline": 4}, 8, 10**12, 10**10, Layout(2, 1, 4, False)),
    ],
)
def test_auto_takes_the_simplest_layout_that_fits(settings: Any, world: int, parameters: int, memory: int, chosen: Layout) -> None:
    assert layout(Parallelism.model_validate(settings), world, parameters, memory) == chosen


def test_a_global_batch_that_cannot_be_split_for_a_pipeline_is_named() -> None:
    with pytest.raises(UserError, match="globalBatch 13 cannot be split evenly over 2 pipelines"):
        micro_batch(Training(global_batch=13), Layout(2, 1, 2, False))
    with pytest.raises(UserError, match="microBatch 3 does not divide the 8 samples"):
        micro_batch(Training(global_batch=16, micro_batch=3), Layout(2, 1, 2, False))
    assert micro_batch(Training(global_batch=24), Layout(2, 1, 2, False)) == 3
