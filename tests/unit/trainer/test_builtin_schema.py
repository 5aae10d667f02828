"""`spec.trainer.builtin` of the CRD and the trainer's models are one: made from each other, and of one mind about any configuration."""

from __future__ import annotations

import json
import runpy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from checkout import CHECKOUT
from lepton_operator.job import read_job
from lepton_operator.local.crd import crd_text, job_schema
from lepton_operator.local.validation import ManifestError, validate
from lepton_trainer.train import schema
from lepton_trainer.train.config import TASKS, parse
from lepton_trainer.train.errors import UserError

made = runpy.run_path(str(CHECKOUT / "charts" / "builtin_schema.py"))
BUILTIN = job_schema()["properties"]["spec"]["properties"]["trainer"]["properties"]["builtin"]


def manifest(builtin: Any) -> dict[str, Any]:
    return {
        "apiVersion": "training.lepton.ai/v1alpha1",
        "kind": "LeptonTrainingJob",
        "metadata": {"name": "builtin"},
        "spec": {"trainer": {"builtin": builtin}},
    }


def accepted_by_the_crd(builtin: Any) -> bool:
    try:
        validate(manifest(builtin))
    except ManifestError:
        return False
    return True


def accepted_by_the_trainer(builtin: Any) -> bool:
    """As it arrives there: through the job's own JSON."""
    try:
        parse(json.loads(read_job(manifest(builtin)).trainer.builtin))
    except UserError:
        return False
    return True


def test_the_crd_is_made_of_the_models_as_they_are() -> None:
    assert made["written"](crd_text()) == crd_text(), "run: make crd"
    assert made["builtin"]() == BUILTIN


def test_each_task_of_the_trainer_can_be_written_into_a_job() -> None:
    assert list(BUILTIN["properties"]) == list(TASKS)
    for task in TASKS:
        assert accepted_by_the_crd({task: {}}) and accepted_by_the_trainer({task: {}})


def near(item: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values of one setting at, inside and outside its bounds, and of other types."""
    values: list[Any] = [*item.get("enum", []), item["default"], "x", "", 0, 1, -1, 2, 1.5, 4, True, [], {}, "a" * 2000]
    for bound in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
        if bound in item:
            values += [item[bound], item[bound] - 1, item[bound] + 1, float(item[bound])]
    return st.sampled_from(values)


def section(node: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    parts = {name: section(item) if "properties" in item else near(item) for name, item in node["properties"].items()}
    return st.lists(st.sampled_from(sorted(parts)), max_size=3, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: parts[name] for name in names})
    )


@pytest.mark.parametrize("task", TASKS)
def test_crd_and_trainer_agree_about_any_configuration(task: str) -> None:
    judged = {True: 0, False: 0}

    @settings(max_examples=400, deadline=None, derandomize=True)
    @given(section(schema.of(task)))
    def judge(configuration: dict[str, Any]) -> None:
        builtin = {task: configuration}
        verdict = accepted_by_the_crd(builtin)
        assert verdict == accepted_by_the_trainer(builtin), builtin
        judged[verdict] += 1

    judge()
    assert min(judged.values()) > 40, judged


@pytest.mark.parametrize("task", TASKS)
def test_each_rule_between_settings_is_the_models_too(task: str) -> None:
    """Layouts, optimisers, sources and their paths in all combinations."""
    sources = {
        "imageClassification": ("digits", "mnist", "folder"),
        "languageModeling": ("stdlib", "folder", "tokens"),
        "tabularClassification": ("breastCancer", "phishing", "shuttle", "csv"),
        "recommendation": ("movielens", "csv"),
        "textClassification": ("r8", "newsgroups", "imdb", "csv"),
    }
    vocabularies: tuple[dict[str, int], ...] = ({}, {"vocabulary": 65537}, {"vocabulary": 65537, "tokenBytes": 4}, {"tokenBytes": 4})
    for strategy in ("auto", "ddp", "fsdp"):
        for tensor, pipeline in ((1, 1), (2, 1), (1, 2), (2, 2)):
            for name in ("adamw", "muon"):
                built = {task: {"optimizer": {"name": name}, "parallelism": {"strategy": strategy, "tensor": tensor, "pipeline": pipeline}}}
                assert accepted_by_the_crd(built) == accepted_by_the_trainer(built), built
    for source in sources[task]:
        for path in ({}, {"path": ""}, {"path": "/data"}):
            for more in vocabularies if task == "languageModeling" else vocabularies[:1]:
                built = {task: {"data": {"source": source, **path, **more}}}
                assert accepted_by_the_crd(built) == accepted_by_the_trainer(built), built
    for kind in ("ngrams", "rnn", "transformer") if task == "textClassification" else ():
        for width in ({}, {"width": 0}, {"width": 7}, {"width": 8}):
            built = {task: {"model": {"kind": kind, **width}}}
            assert accepted_by_the_crd(built) == accepted_by_the_trainer(built), built


def test_whole_numbers_reach_the_trainer_as_such() -> None:
    """YAML has 3.0 for 3, and so has JSON."""
    job = read_job(manifest({"imageClassification": {"training": {"steps": 3.0, "epochs": 2.5}}}))
    assert job.trainer.builtin == '{"imageClassification":{"training":{"steps":3,"epochs":2.5}}}'
    assert job.trainer.command == ("python3", "-m", "lepton_trainer", "train")
