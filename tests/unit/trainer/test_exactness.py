"""The promise of the loop: which sample is used when, and what comes out, does not depend on what happened to the processes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer_group
import trainer_runs as runs
from lepton_trainer.train import tasks
from lepton_trainer.train.data.order import Order


@pytest.fixture(scope="module")
def alone(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process that was never disturbed."""
    out = tmp_path_factory.mktemp("alone")
    trainer_group.run(1, runs.train, runs.language(text, out))
    return out


@pytest.mark.parametrize(("world", "micro_batch"), [(2, 0), (3, 2)])
def test_every_step_has_the_same_loss_on_any_number_of_processes(
    alone: Path, text: Path, tmp_path: Path, world: int, micro_batch: int
) -> None:
    trainer_group.run(world, runs.train, runs.language(text, tmp_path, training={"microBatch": micro_batch}))
    one, many = runs.losses(alone), runs.losses(tmp_path)
    assert one.keys() == many.keys() and len(one) == 20
    assert max(abs(many[step] - one[step]) / one[step] for step in one) < 1e-6


def test_processes_without_a_sample_take_part_and_change_nothing(text: Path, tmp_path: Path) -> None:
    few = {"training": {"steps": 6, "globalBatch": 2}}
    trainer_group.run(1, runs.train, runs.language(text, tmp_path / "1", **few))
    trainer_group.run(3, runs.train, runs.language(text, tmp_path / "3", **few))
    one, many = runs.losses(tmp_path / "1"), runs.losses(tmp_path / "3")
    assert max(abs(many[step] - one[step]) / one[step] for step in one) < 1e-6


@pytest.mark.parametrize("world", [1, 3])
def test_a_killed_run_that_goes_on_ends_with_the_same_bits(text: Path, tmp_path: Path, world: int) -> None:
    undisturbed, killed = (runs.language(text, tmp_path / name, training={"ema": 0.9}) for name in ("undisturbed", "killed"))
    trainer_group.run(world, runs.train, undisturbed)
    with trainer_group.Group(world, runs.train_and_die, killed, world - 1, 13) as group, pytest.raises((ChildProcessError, RuntimeError)):
        group.results()
    trainer_group.run(world, runs.train, killed)
    expected, found = (runs.weights(tmp_path / name, undisturbed, 20) for name in ("undisturbed", "killed"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert runs.losses(tmp_path / "undisturbed") == runs.losses(tmp_path / "killed")


def test_killed_and_resized_each_sample_is_committed_once_per_epoch(tmp_path: Path) -> None:
    few = runs.text_folder(tmp_path / "text", files=8)
    config = runs.language(few, tmp_path, training={"steps": 0, "epochs": 2.0, "globalBatch": 61}, checkpoint={"everySteps": 3})
    for world, step in ((2, 5), (3, 8), (1, 11)):
        with (
            trainer_group.Group(world, runs.train_and_die, config, world - 1, step) as group,
            pytest.raises((ChildProcessError, RuntimeError)),
        ):
            group.results()
    trainer_group.run(2, runs.train, config)
    used = Counter(pair for pairs in runs.committed(tmp_path).values() for pair in pairs)
    samples = {sample for _, sample in used}
    assert samples == set(range(len(samples)))
    assert used == Counter({(epoch, sample): 1 for epoch in (0, 1) for sample in samples})


def test_after_epochs_the_order_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """B31: killed at the last step of epoch 2 and in the middle of epoch 3, resumed with 2 and with 3 processes."""
    few = runs.text_folder(tmp_path / "text", files=6)
    settings: dict[str, Any] = {"training": {"steps": 0, "epochs": 4.0, "globalBatch": 32}, "checkpoint": {"everySteps": 1}}
    config = runs.language(few, tmp_path, **settings)
    size = tasks.build(config).size
    last_of_two, in_three = -(-2 * size // 32), -(-5 * size // 64)
    for world, step in ((2, last_of_two), (2, in_three)):
        with (
            trainer_group.Group(world, runs.train_and_die, config, world - 1, step) as group,
            pytest.raises((ChildProcessError, RuntimeError)),
        ):
            group.results()
    trainer_group.run(3, runs.train, config)
    found = runs.committed(tmp_path)
    order = Order(3, size)
    for step in range(1, -(-4 * size // 32) + 1):
        epochs, samples = order.at((step - 1) * 32, min(step * 32, 4 * size))
        assert sorted(found[step]) == sorted(zip(epochs.tolist(), samples.tolist(), strict=True)), step


def test_batch_norm_resumes_bitwise_though_its_statistics_are_of_each_process(tmp_path: Path) -> None:
    undisturbed, killed = (runs.digits(tmp_path / name) for name in ("undisturbed", "killed"))
    trainer_group.run(2, runs.train, undisturbed)
    with trainer_group.Group(2, runs.train_and_die, killed, 0, 15) as group, pytest.raises((ChildProcessError, RuntimeError)):
        group.results()
    trainer_group.run(2, runs.train, killed)
    expected, found = (runs.weights(tmp_path / name, undisturbed, 20) for name in ("undisturbed", "killed"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
