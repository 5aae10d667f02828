"""What becomes of a trained model: a round's changes, a warm start, the whole model from any layout, its export and what may go wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import trainer_group
import trainer_runs as runs
from lepton_trainer.train import loop, models, schema
from lepton_trainer.train.config import Assignment, TaskConfig, assignment
from lepton_trainer.train.delivery import conclusion, formats, manifest
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.serving import models as serving
from lepton_trainer.train.settings.delivery import RESERVED, Delivery, Export, Optimise, Round
from lepton_trainer.train.storage import open_storage

EXPORT = Delivery(export=Export())


def given(document: dict[str, Any]) -> Assignment:
    return assignment(json.loads(json.dumps(document)))


def test_a_round_multiplies_the_task_s_own_settings() -> None:
    settings = {"training": {"epochs": 4.0, "steps": 10}, "checkpoint": {"path": "s3://bucket/run"}}
    found = given({"imageClassification": settings, "round": {"number": 2, "learningRate": 0.5, "epochs": 2.0, "width": 1.5}}).task
    assert (found.optimizer.learning_rate, found.training.epochs, found.training.steps) == (0.0005, 8.0, 20)
    assert found.model.model_dump()["width"] == 48 and found.checkpoint.path == "s3://bucket/run/round-2"
    language = given({"languageModeling": {"model": {"preset": "124M"}}, "round": {"width": 1.5}}).task
    assert language.model.model_dump()["preset"] == "1B", "without a width it is the next preset by size"
    widest = given({"imageClassification": {"model": {"width": 1024}}, "round": {"width": 2.0, "learningRate": 1000.0}}).task
    assert widest.model.model_dump()["width"] == 1024


def test_what_stands_beside_the_task_is_checked_like_the_task() -> None:
    with pytest.raises(UserError) as caught:
        given({"imageClassification": {}, "optimise": {"methods": ["shrink"]}, "export": {"place": "x"}, "round": {"epochs": 0.0}})
    said = str(caught.value)
    assert "optimise.methods.0: input should be 'quantise', 'prune' or 'distil', not 'shrink'" in said
    assert "export.place is not a setting (allowed there: path, formats, licence)" in said
    assert "round.epochs: input should be greater than 0, not 0.0" in said
    assert given({"imageClassification": {}, "optimise": {}}).delivery.export == Export(), "what is optimised is exported"


@pytest.mark.parametrize("key", RESERVED)
def test_the_manual_holds_the_table_of_what_stands_beside_the_task(key: str) -> None:
    manual = Path(__file__).parents[3] / "docs" / "trainer.md"
    assert schema.table(key) in manual.read_text(), "put `python -m lepton_trainer explain KEY --markdown` into docs/trainer.md"


def test_a_warm_start_takes_what_fits_and_says_what_does_not(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop.train(runs.language(text, tmp_path / "round-1", training={"ema": 0.5}))
    cold = runs.losses(tmp_path / "round-1")
    warm = Delivery(round=Round(number=2, warm_start=str(tmp_path / "round-1")))
    loop.train(runs.language(text, tmp_path / "round-2"), warm)
    assert runs.losses(tmp_path / "round-2")[1] < cold[20] + 0.3 < cold[1] - 1.0, "it begins about where the first one ended"
    assert "tensors are loaded from step 20 in" in capsys.readouterr().err
    loop.train(runs.language(text, tmp_path / "round-3", model={"preset": "4M"}, training={"steps": 2}), warm)
    said = capsys.readouterr().err
    assert "WarmStarted: 0 tensors are loaded" in said and "do not fit and begin anew: blocks.0.attention" in said
    loop.train(runs.language(text, tmp_path / "round-4", training={"steps": 2}), Delivery(round=Round(warm_start=str(tmp_path / "empty"))))
    assert "nothing was loaded: there is no whole checkpoint" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_not_what_a_warm_start_takes(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loop.train(runs.language(text, tmp_path / "a"))
    damaged = next((tmp_path / "a" / "gen-1" / "step-000000020").glob("*.distcp"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    loop.train(runs.language(text, tmp_path / "b", training={"steps": 2}), Delivery(round=Round(warm_start=str(tmp_path / "a"))))
    assert "tensors are loaded from step 10 in" in capsys.readouterr().err


def deliver(config: TaskConfig, delivery: Delivery) -> dict[str, float]:
    """What a rank of a test runs."""
    return loop.train(config, delivery).figures


@pytest.mark.parametrize(
    ("world", "layout", "training"),
    [
        (1, {}, {"ema": 0.5}),
        (2, {"strategy": "fsdp"}, {}),
        (2, {"strategy": "fsdp"}, {"ema": 0.5}),
        (2, {"tensor": 2}, {}),
        (2, {"pipeline": 2}, {"globalBatch": 12}),
    ],
)
def test_the_whole_model_is_exported_from_every_layout(
    world: int, layout: dict[str, Any], training: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    config = runs.language(text, tmp_path, parallelism=layout, training=training)
    figures = trainer_group.run(world, deliver, config, EXPORT)[0]
    storage = open_storage(str(tmp_path / "model"))
    found = manifest.read(storage)
    assert found is not None and found["task"] == "language-modeling" and found["source"]["step"] == 20
    assert found["metrics"]["bits_per_byte"] == pytest.approx(figures["bits_per_byte"], rel=1e-5)
    kept = runs.weights(tmp_path, config, 20)
    exported = load_file(manifest.fetch(storage, found) / manifest.WEIGHTS)
    for name, tensor in exported.items():
        assert torch.equal(tensor, kept.get(f"average.{name}", kept[f"model.{name}"])), name
    assert len(exported) == sum(name.startswith("model.") for name in kept)
    encoder = json.loads((manifest.fetch(storage, found) / manifest.ENCODER).read_text())
    models.restored(found["model"], encoder, exported)


def test_an_export_is_made_once_and_again_when_something_else_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = runs.digits(tmp_path, output={"plots": True})
    result = loop.train(config, EXPORT)
    storage = open_storage(str(tmp_path / "model"))
    first = manifest.read(storage)
    assert first is not None and first["metrics"]["accuracy"] == result.figures["accuracy"]
    assert all(manifest.hash_of(tmp_path / "model" / name) == fact["sha256"] for name, fact in first["files"].items())
    card = (tmp_path / "model" / first["version"] / "README.md").read_text()
    assert first["source"]["data"] in card and "| licence | unspecified |" in card and "](curves.png)" in card
    assert "ModelExported: " in capsys.readouterr().err
    loop.train(config, EXPORT)
    assert manifest.read(storage) == first and "holds the model of step 20 already" in capsys.readouterr().err
    loop.train(config, Delivery(export=Export(licence="CC-BY-4.0")))
    second = manifest.read(storage)
    assert second is not None and second["licence"] == "CC-BY-4.0" and second["digest"] == first["digest"]
    assert (tmp_path / "model" / first["version"]).is_dir(), "a server may still be reading the version before"
    loop.train(config, Delivery(export=Export(licence="MIT")))
    assert not (tmp_path / "model" / first["version"]).exists()


def test_other_formats_give_the_original_s_outputs(tmp_path: Path) -> None:
    loop.train(runs.digits(tmp_path, training={"steps": 2}), Delivery(export=Export(formats=["safetensors", "torchExport", "onnx"])))
    found = manifest.read(open_storage(str(tmp_path / "model")))
    assert found is not None and found["formats"].keys() == {"torchExport", "onnx"}
    for fact in found["formats"].values():
        assert fact["difference"] <= fact["tolerance"] == 1e-3 and f"{found['version']}/{fact['file']}" in found["files"]


def test_a_format_that_differs_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(formats, "_torch_export", lambda model, inputs, file: model(inputs * 1.1).detach())
    loop.train(runs.digits(tmp_path, training={"steps": 2}), Delivery(export=Export(formats=["torchExport"])))
    assert re.search(r"ExportFailed: torchExport differs from the original by [\d.e-]+ of the largest output", capsys.readouterr().err)
    found = manifest.read(open_storage(str(tmp_path / "model")))
    assert found is not None and found["formats"] == {}


def die_while_exporting(config: TaskConfig, delivery: Delivery) -> None:
    conclusion.card.text = lambda found: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment, return-value]
    loop.train(config, delivery)


def test_a_run_that_is_killed_between_its_end_and_its_export_exports_when_it_is_started_again(tmp_path: Path) -> None:
    config = runs.digits(tmp_path)
    with trainer_group.Group(1, die_while_exporting, config, EXPORT) as group, pytest.raises(Exception):  # noqa: B017
        group.results()
    assert list(tmp_path.glob("gen-1/step-000000020/manifest.json")) and list(tmp_path.glob("model/step-*/model.safetensors"))
    storage = open_storage(str(tmp_path / "model"))
    assert manifest.read(storage) is None, "without its manifest it is no model"
    loop.train(config, EXPORT)
    found = manifest.read(storage)
    assert found is not None and found["source"]["step"] == 20
    assert len(list(tmp_path.glob("model/step-*"))) == 1, "what was left half-way is gone"


def test_an_object_store_holds_a_model_like_a_directory(tmp_path: Path) -> None:
    """fsspec's own store in memory; the proofs use S3's interface."""
    place = f"memory://{tmp_path.name}/models"
    delivery = Delivery(export=Export(path=place), round=Round(number=2))
    loop.train(runs.digits(tmp_path), delivery)
    storage = open_storage(f"{place}/round-2")
    found = manifest.read(storage)
    assert found is not None and found["source"]["round"] == 2
    assert serving.load(storage, found, torch.device("cpu")).digest == found["digest"]


def test_a_place_that_cannot_be_written_is_told_before_the_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/model: .*Write another"):
        loop.train(runs.digits(tmp_path / "run"), Delivery(export=Export(path=str(tmp_path / "file" / "model"))))
    assert not list(tmp_path.glob("run/gen-*/step-*"))


def test_a_disk_that_is_full_at_the_export_keeps_the_checkpoints_and_says_what_to_do(
    tmp_path: Path, full_disk: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = runs.digits(tmp_path)
    plain = conclusion.export

    def export(*arguments: Any) -> Any:
        full_disk(True)
        return plain(*arguments)

    monkeypatch.setattr(conclusion, "export", export)
    with pytest.raises(UserError, match=r"the model cannot be written: .*the checkpoints are kept"):
        loop.train(config, EXPORT)
    full_disk(False)
    assert "ExportFailed: " in capsys.readouterr().err and list(tmp_path.glob("gen-1/step-000000020/manifest.json"))
    monkeypatch.undo()
    loop.train(config, EXPORT)
    assert manifest.read(open_storage(str(tmp_path / "model"))) is not None


def test_an_optimised_model_is_smaller_is_judged_and_can_be_loaded(tmp_path: Path) -> None:
    config = runs.digits(tmp_path, model={"width": 16})
    loop.train(config, Delivery(export=Export(), optimise=Optimise(methods=["quantise", "prune", "distil"], tolerance=1.0)))
    storage = open_storage(str(tmp_path / "model"))
    found = manifest.read(storage)
    assert found is not None
    rows = found["optimisations"]
    assert [row["method"] for row in rows] == ["distil", "prune", "quantise"] and all(row["kept"] for row in rows)
    sizes = [rows[0]["before"]["bytes"], *(row["after"]["bytes"] for row in rows)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] / 10
    tensors = load_file(manifest.fetch(storage, found) / manifest.WEIGHTS)
    model = models.restored(found["model"], {}, tensors)
    assert tensors["blocks.0.conv1.weight"].dtype == torch.int8 and model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_an_optimisation_that_loses_too_much_is_not_exported_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = runs.digits(tmp_path, training={"steps": 60}, optimizer={"learningRate": 0.01})
    trained = loop.train(config).figures["accuracy"]
    settings = Optimise(methods=["distil"], tolerance=0.0)
    narrow = config.model_copy(update={"optimizer": config.optimizer.model_copy(update={"learning_rate": 1e-6})})
    loop.train(narrow, Delivery(export=Export(), optimise=settings))  # a student that cannot learn
    said = capsys.readouterr().err
    assert f"OptimisationRejected: distil: accuracy went from {trained:.4f} to " in said and "more than the tolerance of 0" in said
    found = manifest.read(open_storage(str(tmp_path / "model")))
    assert found is not None and found["metrics"]["accuracy"] == trained
    assert [(row["method"], row["kept"]) for row in found["optimisations"]] == [("distil", False)]
    card = (tmp_path / "model" / found["version"] / "README.md").read_text()
    assert "no: accuracy went from" in card


def test_a_torchao_that_does_not_go_with_this_torch_is_named(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    config = runs.language(text, tmp_path, training={"steps": 2})
    loop.train(config, Delivery(export=Export(), optimise=Optimise(methods=["quantise"])))
    assert f"quantise: torchao cannot quantise with torch {torch.__version__} here (ModuleNotFoundError" in capsys.readouterr().err
    assert manifest.read(open_storage(str(tmp_path / "model"))) is not None


def test_a_quantised_language_model_stays_close_to_the_original(text: Path, tmp_path: Path) -> None:
    config = runs.language(text, tmp_path)
    loop.train(config, Delivery(export=Export(), optimise=Optimise(methods=["quantise"], tolerance=0.05)))
    found = manifest.read(open_storage(str(tmp_path / "model")))
    assert found is not None
    (row,) = found["optimisations"]
    assert row["kept"] and row["after"]["bytes"] < 0.4 * row["before"]["bytes"]
    assert row["after"]["bits_per_byte"] != row["before"]["bits_per_byte"]
