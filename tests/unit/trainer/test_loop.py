"""What a run does on its way: it learns, stops when asked, refuses what is not finite, and says what is wrong without a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import trainer_group
import trainer_runs as runs
from lepton_trainer.train import loop, ranks
from lepton_trainer.train.checkpoint import Checkpointer
from lepton_trainer.train.cli import main
from lepton_trainer.train.config import parse
from lepton_trainer.train.errors import NonFiniteLoss, NotSaved, UserError

ROOT = Path(__file__).parents[3]


def test_digits_are_learnt_and_everything_is_written_down(tmp_path: Path) -> None:
    config = runs.digits(
        tmp_path,
        model={"width": 16},
        training={"steps": 0, "epochs": 6.0, "globalBatch": 32, "ema": 0.9},
        optimizer={"learningRate": 0.005},
        output={"plots": True, "everySteps": 20},
    )
    result = loop.train(config)
    assert result.finished and result.figures["accuracy"] > 0.95
    rows = runs.history(tmp_path)
    assert {"step", "consumed", "epoch", "loss", "learning_rate", "gradient_norm"} <= rows[0].keys()
    assert sum("accuracy" in row for row in rows) == 6, "once per epoch"
    assert json.loads((tmp_path / "result.json").read_text())["accuracy"] == result.figures["accuracy"]
    assert (tmp_path / "curves.png").stat().st_size > 5_000
    again = loop.train(config)
    assert again.step == result.step and again.figures == result.figures, "a finished run is evaluated and not trained again"


def test_a_sigterm_to_one_rank_stops_all_at_one_step_with_a_checkpoint_and_the_bits_are_kept(text: Path, tmp_path: Path) -> None:
    stopped, undisturbed = (
        runs.language(text, tmp_path / name, training={"steps": 40}, checkpoint={"everySteps": 1000}) for name in ("a", "b")
    )
    with trainer_group.Group(2, runs.train_and_tell, stopped) as group:
        file = tmp_path / "a" / "history.jsonl"
        deadline = time.monotonic() + 60
        while not file.exists() or file.read_text().count("\n") < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        pid = group.processes[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGTERM)
        first, second = group.results()
    assert first == second and first[1:] == (False, True) and 3 <= first[0] < 40
    assert list((tmp_path / "a").glob(f"gen-1/step-{first[0]:09d}/manifest.json"))
    assert trainer_group.run(2, runs.train_and_tell, stopped)[0] == (40, True, False)
    trainer_group.run(2, runs.train, undisturbed)
    assert runs.losses(tmp_path / "a") == runs.losses(tmp_path / "b")


def test_a_loss_that_is_not_finite_ends_the_run_and_never_reaches_a_checkpoint(text: Path, tmp_path: Path) -> None:
    config = runs.language(text, tmp_path, optimizer={"name": "sgd", "learningRate": 100.0, "clipNorm": 0.0}, checkpoint={"everySteps": 1})
    with pytest.raises(NonFiniteLoss, match=r"step \d+ .*Lower optimizer.learningRate"):
        loop.train(config)
    committed = sorted(tmp_path.glob("gen-1/step-*/manifest.json"))
    if committed:
        step = int(committed[-1].parent.name[5:])
        assert all(torch.isfinite(t).all() for t in runs.weights(tmp_path, config, step).values())


@pytest.fixture
def full_from(full_disk: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`full_from(10, 15)`: the disk is full from the checkpoint of step 10 until the next one after that of step 15."""
    plain = Checkpointer.save

    def choose(*steps: int) -> None:
        def save(self: Checkpointer, step: int, *rest: Any) -> None:
            self.wait()  # what is being written has found room
            full_disk(step in steps)
            plain(self, step, *rest)

        monkeypatch.setattr(Checkpointer, "save", save)

    return choose


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_and_history_and_not_the_run(
    text: Path, tmp_path: Path, full_from: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    full_from(10, 15)
    (tmp_path / "history.jsonl").write_text('{"step": 0}\n' * 400)  # too much for another row within the limit
    result = loop.train(runs.language(text, tmp_path, checkpoint={"everySteps": 5}))
    assert result.finished and result.step == 20
    said = capsys.readouterr().err
    assert "CheckpointFailed: step 10 is not saved, training goes on" in said and said.count("CheckpointFailed") == 2
    assert said.count("CheckpointsSavedAgain: the checkpoint of step 20 is saved, 2 before it were not") == 1
    assert said.count("history.jsonl cannot be written, training goes on: File too large") == 1
    assert [path.parent.name for path in sorted(tmp_path.glob("gen-1/step-*/manifest.json"))] == ["step-000000005", "step-000000020"]


def test_a_run_whose_last_checkpoint_is_not_saved_has_not_ended_well_and_goes_on_from_the_one_before(
    text: Path, tmp_path: Path, full_from: Callable[..., None], full_disk: Callable[[bool], None]
) -> None:
    full_from(20)
    with pytest.raises(NotSaved, match=r"the last checkpoint, of step 20, is not saved: .*Make room"):
        loop.train(runs.language(text, tmp_path))
    full_disk(False)
    full_from()
    assert loop.train(runs.language(text, tmp_path)).finished
    assert runs.losses(tmp_path).keys() == set(range(1, 21))


def test_early_stopping_ends_a_run_that_gets_no_better(text: Path, tmp_path: Path) -> None:
    training = {"steps": 200, "evaluateEverySteps": 2, "patience": 3, "globalBatch": 4}
    config = runs.language(text, tmp_path, training=training, optimizer={"learningRate": 1e-30})
    result = loop.train(config)
    assert result.finished and result.step == 8
    assert list(tmp_path.glob(f"gen-1/step-{result.step:09d}/manifest.json"))


def test_more_classes_or_another_seed_are_refused_and_the_checkpoint_is_kept(text: Path, tmp_path: Path) -> None:
    loop.train(runs.language(text, tmp_path, training={"steps": 2}))
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    for change, message in (
        ({"training": {"steps": 4, "seed": 9}}, "seed 3 there, 9 here"),
        ({"model": {"preset": "4M"}}, "'preset': '4M'"),
    ):
        with pytest.raises(UserError) as caught:
            loop.train(runs.language(text, tmp_path, **change))
        assert message in str(caught.value)
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before


def test_running_out_of_memory_says_what_to_lower_by_how_much() -> None:
    place = ranks.Place(1, 4, torch.device("cpu"))
    for training, advice in (({"globalBatch": 64}, "Write training.microBatch: 8"), ({"microBatch": 6}, "Write training.microBatch: 3")):
        error = loop.out_of_memory(parse({"imageClassification": {"training": training}}), place, torch.OutOfMemoryError("no room"))
        assert advice in str(error) and "rank 1: out of memory" in str(error)
    error = loop.out_of_memory(parse({"imageClassification": {"training": {"microBatch": 1}}}), place, torch.OutOfMemoryError("no room"))
    assert "smaller model" in str(error)


def test_missing_data_ends_the_command_with_code_2_and_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("languageModeling: {data: {source: folder, path: /nowhere}}")
    assert main(["train", str(file)]) == 2
    assert capsys.readouterr().err == "error: data.path /nowhere: there is no such directory. Write where the text files are\n"


def test_the_program_ends_with_code_2_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("imageClassification: {training: {epoch: 3}}")
    program = [sys.executable, "-X", "importtime", "-m", "lepton_trainer", "train", "config.yaml"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "trainer_image")}
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=60, check=False)
    assert done.returncode == 2 and "epoch is not a setting" in done.stderr
    assert not any(line.endswith("| torch") for line in done.stderr.splitlines())
