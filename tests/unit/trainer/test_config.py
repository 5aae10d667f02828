"""A user's mistake in the configuration is named with its place and what to write instead; the schema says the same as the models."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lepton_trainer.agent.install import install
from lepton_trainer.train import schema
from lepton_trainer.train.cli import main
from lepton_trainer.train.config import TASKS, load, parse
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.image_classification import ImageClassification
from lepton_trainer.train.settings.language_modeling import LanguageModeling


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "exactly one task is needed, found none"),
        ({"imageClassification": {}, "languageModeling": {}}, "exactly one task is needed, found imageClassification, languageModeling"),
        ({"imageClasification": {}}, "'imageClasification' is no task. Write one of imageClassification, languageModeling"),
        (
            {"imageClassification": {"training": {"epoch": 3}}},
            "imageClassification.training.epoch is not a setting (allowed there: epochs, steps",
        ),
        ({"imageClassification": {"traning": {}}}, "imageClassification.traning is not a setting"),
        ({"imageClassification": {"training": {"steps": "3"}}}, "training.steps: input should be a valid integer, not '3'"),
        (
            {"imageClassification": {"training": {"globalBatch": 0}}},
            "training.globalBatch: input should be greater than or equal to 1, not 0",
        ),
        (
            {"imageClassification": {"optimizer": {"learningRate": None}}},
            "learningRate has no value: leave the key out instead of writing null",
        ),
        ({"imageClassification": {"optimizer": {"learningRate": float("nan")}}}, "input should be a finite number"),
        ({"imageClassification": {"data": {"source": "cifar"}}}, "data.source: input should be 'digits', 'mnist' or 'folder', not 'cifar'"),
        ({"imageClassification": {"data": {"source": "mnist"}}}, "data.path is missing: source mnist needs the directory of its files"),
        ({"imageClassification": {"training": {"deterministic": 1}}}, "input should be a valid boolean"),
        ({"languageModeling": {"optimizer": {"name": "muon"}, "parallelism": {"strategy": "fsdp"}}}, "muon needs whole matrices"),
        (
            {"languageModeling": {"data": {"source": "tokens", "path": "x", "vocabulary": 100_000}}},
            "data.tokenBytes is 2, which holds 65536",
        ),
        ({"imageClassification": {"parallelism": {"tensor": 2}}}, "must be 1 here"),
    ],
)
def test_a_mistake_is_named(document: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(document)
    assert message in str(caught.value)


def test_all_mistakes_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse({"imageClassification": {"training": {"epochs": -1, "seed": "x"}, "output": {"plot": True}}})
    assert str(caught.value).count("imageClassification.") == 3


def test_an_empty_task_has_working_defaults() -> None:
    assert isinstance(parse({"imageClassification": None}), ImageClassification)
    language = parse({"languageModeling": {"optimizer": {"name": "adamw"}}})
    assert isinstance(language, LanguageModeling)
    assert language.optimizer.clip_norm == 1.0, "a section that is written in part keeps its task's defaults for the rest"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"imageClassification: {training: {epochs: 3}", "is not YAML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"a: b: c", "line 1: is not YAML"),
    ],
)
def test_a_file_that_is_no_configuration_ends_with_code_2_and_one_line(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said and str(file) in said and said.count("\n") == 1


def test_a_missing_file_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "/nowhere/config.yaml"]) == 2
    assert "/nowhere/config.yaml: there is no such file" in capsys.readouterr().err


def test_without_a_file_the_job_s_own_settings_are_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("LEPTON_BUILTIN", raising=False)
    assert main(["train"]) == 2
    assert "no configuration" in capsys.readouterr().err
    monkeypatch.setenv("LEPTON_BUILTIN", '{"imageClassification":{"training":{"epoch":1}}}')
    assert main(["train"]) == 2
    assert "spec.trainer.builtin: imageClassification.training.epoch is not a setting" in capsys.readouterr().err


def test_an_image_without_the_trainer_says_so(tmp_path: Path) -> None:
    """What the init container copies into an image of the user's, started as a job's builtin starts it."""
    install(str(tmp_path))
    environment = {"PYTHONPATH": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-S", "-m", "lepton_trainer", "train"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "this image cannot run the built-in trainer: Python module 'lepton_trainer.train' is not in it" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(b"\xef\xbb\xbfimageClassification: {}\r\n")
    assert isinstance(load(file).task, ImageClassification)


@pytest.mark.parametrize("task", TASKS)
def test_the_schema_is_flat_enough_for_a_resource(task: str) -> None:
    found = schema.of(task)

    def look(node: Any, place: str) -> None:
        assert isinstance(node, dict), place
        assert not {"$ref", "anyOf", "oneOf", "allOf", "$defs"} & set(node), place
        assert node.get("description"), place
        if "properties" in node:
            assert node["additionalProperties"] is False and node["type"] == "object", place
            for name, item in node["properties"].items():
                assert re.fullmatch(r"[a-z][a-zA-Z0-9]*", name), name
                look(item, f"{place}.{name}")
        else:
            values = node.get("additionalProperties", node)  # a map has values of one kind, and a limit to their number
            assert values["type"] in ("string", "integer", "number", "boolean"), place
            assert values is node or "maxProperties" in node, place
            assert "default" in node, place
            assert node["type"] != "string" or "maxLength" in node or "enum" in node, place

    look(found, task)


@pytest.mark.parametrize("task", TASKS)
def test_the_defaults_of_the_schema_are_a_valid_configuration(task: str) -> None:
    def defaults(node: dict[str, Any]) -> dict[str, Any]:
        return {name: defaults(item) if "properties" in item else item["default"] for name, item in node["properties"].items()}

    assert parse({task: defaults(schema.of(task))}) == parse({task: {}})


def test_the_commands_describe_the_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0 and "imageClassification" in capsys.readouterr().out
    assert main(["explain", "languageModeling"]) == 0 and "training.globalBatch = 64" in capsys.readouterr().out
    assert main(["schema", "imageClassification"]) == 0 and yaml.safe_load(capsys.readouterr().out)["type"] == "object"


@pytest.mark.parametrize("task", TASKS)
def test_the_manual_holds_the_generated_table(task: str) -> None:
    manual = Path(__file__).parents[3] / "docs" / "trainer.md"
    assert schema.table(task) in manual.read_text(), "put `python -m lepton_trainer explain TASK --markdown` into docs/trainer.md"
