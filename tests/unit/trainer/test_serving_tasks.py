"""Rows, texts, users and items: what is served answers the held-out data as the evaluation did, and refuses what the model cannot take."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lepton_trainer.train import loop, tasks
from lepton_trainer.train.config import assignment
from lepton_trainer.train.serving import models
from lepton_trainer.train.serving.models import Served
from lepton_trainer.train.serving.server import Wrong, unpack
from lepton_trainer.train.storage import open_storage


def served(task: str, settings: dict[str, Any], out: Path, **beside: Any) -> tuple[Served, dict[str, float], Any]:
    """Train a little, export, load as the server does: the model, the evaluation's figures, and the task with its data."""
    common = {"checkpoint": {"path": str(out)}, "output": {"plots": False}}
    given = assignment({task: {**settings, **common}, "export": {}, **beside})
    figures = loop.train(given.task, given.delivery).figures
    storage = open_storage(str(out / "model"))
    return models.load(storage, models.found(storage), torch.device("cpu")), figures, tasks.build(given.task)


def answers(model: Served, instances: list[Any]) -> list[dict[str, Any]]:
    body = json.dumps({"instances": instances}).encode()
    return model.answer(unpack(body, model))


def refusal(model: Served, instance: Any) -> str:
    with pytest.raises(Wrong) as caught:
        unpack(json.dumps({"instances": [instance]}).encode(), model)
    assert caught.value.status == 400 and model.adapter.expects in str(caught.value)
    return str(caught.value)


def table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def loans(count: int, seed: int) -> list[dict[str, str]]:
    dice = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        income, home = dice.normal(3000, 900), str(dice.choice(["rent", "own", ""]))
        bad = dice.random() < 0.15 + 0.5 * (income < 2500)
        rows.append({"income": "" if dice.random() < 0.1 else f"{income:.2f}", "home": home, "default": "yes" if bad else "no"})
    return rows


@pytest.mark.parametrize("optimised", [False, True])
def test_rows_are_answered_as_the_evaluation_did(optimised: bool, tmp_path: Path) -> None:
    table(tmp_path / "train.csv", loans(300, 1))
    table(tmp_path / "test.csv", held := loans(120, 2))
    settings = {
        "data": {"source": "csv", "path": str(tmp_path)},
        "training": {"epochs": 4.0},
        "decision": {"falseAlarm": 1.0, "miss": 3.0},
    }
    beside = {"optimise": {"methods": ["prune", "quantise", "distil"], "tolerance": 1.0}} if optimised else {}
    model, figures, _ = served("tabularClassification", settings, tmp_path / "out", **beside)
    truth = [row.pop("default") for row in held]
    found = answers(model, held)
    right = sum(answer["label"] == label for answer, label in zip(found, truth, strict=True))
    told = model.manifest["metrics"]
    assert right / len(truth) == told["accuracy"] and (optimised or told == pytest.approx(figures))
    assert optimised == all(row["kept"] for row in model.manifest["optimisations"] or [{"kept": False}])
    typed = [{name: float(value) if name == "income" and value else value or None for name, value in row.items()} for row in held]
    assert answers(model, typed) == found, "a number is a number, null is missing"
    assert "found the column 'age', which the model does not know" in refusal(model, {"age": 3})
    assert "found 'much' in column income, which holds numbers" in refusal(model, {"income": "much"})
    assert "found [1] in column home" in refusal(model, {"home": [1]})
    assert "found no value at all" in refusal(model, {"home": None}) and "found 3" in refusal(model, 3)
    assert "income (number), home (text)" in model.adapter.expects


@pytest.mark.parametrize("kind", ["ngrams", "rnn", "transformer"])
def test_texts_are_answered_as_the_evaluation_did(kind: str, tmp_path: Path) -> None:
    words = {"grain": ["wheat", "corn", "barley", "harvest"], "metal": ["gold", "silver", "copper", "mine"]}
    dice = np.random.default_rng(0)

    def texts(count: int) -> list[dict[str, str]]:
        labels = [str(dice.choice(list(words))) for _ in range(count)]
        return [
            {"text": f"{' '.join(dice.choice([*words[label], 'the', 'of', 'price', 'market'], 7))} {number}", "label": label}
            for number, label in enumerate(labels)
        ]

    table(tmp_path / "train.csv", texts(80))
    table(tmp_path / "test.csv", held := texts(40))
    settings = {"data": {"source": "csv", "path": str(tmp_path)}, "model": {"kind": kind, "width": 16}, "training": {"epochs": 3.0}}
    model, figures, _ = served("textClassification", settings, tmp_path / "out")
    found = answers(model, [row["text"] for row in held])
    right = sum(answer["label"] == row["label"] for answer, row in zip(found, held, strict=True))
    assert right / len(held) == figures["accuracy"] == model.manifest["metrics"]["accuracy"]
    alone = answers(model, [{"text": held[0]["text"]}])[0]
    assert alone["probabilities"] == pytest.approx(found[0]["probabilities"], abs=1e-5)
    assert answers(model, ["words that no one has seen"])[0]["label"] in words
    assert "found 3" in refusal(model, 3) and "found an empty text" in refusal(model, " ")


@pytest.mark.parametrize("objective", ["rating", "ranking"])
def test_users_and_items_are_answered_as_the_evaluation_did(objective: str, tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    rows = [
        {
            "user": f"u{user}",
            "item": f"i{item}",
            "rating": str(int(np.clip((4 if user % 2 == item % 2 else 2) + dice.normal(), 1, 5))),
            "timestamp": str(at),
        }
        for user in range(30)
        for at, item in enumerate(dice.permutation(120)[:40])
    ]
    table(tmp_path / "ratings.csv", rows)
    table(tmp_path / "users.csv", [{"id": f"u{user}", "taste": "mf"[user % 2]} for user in range(30)])
    settings = {"data": {"source": "csv", "path": str(tmp_path)}, "objective": objective, "training": {"epochs": 3.0}}
    model, figures, task = served("recommendation", settings, tmp_path / "out")
    encoder = task.data.encoder
    held = np.asarray(task.data.held)
    name = "rating" if objective == "rating" else "score"
    pairs = [{"user": encoder.users[user - 1], "item": encoder.items[item - 1]} for user, item in held[:, :2].tolist()]
    found = [answer[name] for answer in answers(model, pairs)]
    if objective == "rating":
        errors = np.asarray(found) - np.asarray(task.data.held_ratings)
        assert math.sqrt(np.square(errors).mean()) == pytest.approx(figures["rmse"], rel=1e-6)
    else:
        better = [{"user": encoder.users[row[0] - 1], "item": encoder.items[item - 1]} for row in held.tolist() for item in row[2:]]
        others = np.asarray(
            [answer["score"] for first in range(0, len(better), 1000) for answer in answers(model, better[first : first + 1000])]
        )
        ranks = (others.reshape(len(held), -1) >= np.asarray(found)[:, None]).sum(axis=1)
        assert (ranks < 10).mean() == pytest.approx(figures["hit_rate_at_10"])
    first, fewer = answers(model, [{"user": "u0", "top": 5}, {"user": "u0", "top": 5, "exclude": ["i0", "nothing"]}])
    assert len(first["items"]) == 5 and first["known_user"] and first["items"] == sorted(first["items"], key=lambda row: -row[name])
    assert all(row["item"] != "i0" for row in fewer["items"])
    best = first["items"][0]
    assert answers(model, [{"user": "u0", "item": best["item"]}])[0][name] == pytest.approx(best[name], rel=1e-5)
    stranger = answers(model, [{"user": "nobody", "item": "i1"}, {"user": 7, "top": 1}])
    assert stranger[0]["known_user"] is False and stranger[0]["known_item"] is True and stranger[1]["known_user"] is False
    for wrong, message in (
        ({"item": "i1"}, "found {'item': 'i1'}"),
        ({"user": "u0", "item": "i1", "top": 3}, "found the key 'top' beside item and user"),
        ({"user": "u0", "top": 0}, "found 0 as top"),
        ({"user": "u0", "exclude": "i1"}, "found 'i1' as exclude"),
        ({"user": None}, "found None as user"),
        ([1, 2], "found [1, 2]"),
    ):
        assert message in refusal(model, wrong)
