"""What tables and ratings leave behind: pictures, and a model that comes back from its files alone with the same figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lepton_trainer.train import loop, models, tasks
from lepton_trainer.train.config import parse
from lepton_trainer.train.delivery import judging
from lepton_trainer.train.settings.delivery import Delivery, Export

ROWS = [f"u{user},i{(user * 3 + turn * 7) % 40},{1 + (user + turn) % 5},{turn}" for user in range(40) for turn in range(12)]


@pytest.mark.parametrize(
    ("task", "own", "pictures"),
    [
        ("tabularClassification", {}, ("confusion.png", "roc.png", "precision-recall.png", "wrong.txt")),
        ("recommendation", {"model": {"kind": "factorization"}}, ("residuals.png",)),
        ("recommendation", {"model": {"kind": "dlrm"}}, ("residuals.png",)),
        ("recommendation", {"objective": "ranking", "negatives": 4}, ("ranks.png",)),
    ],
    ids=["table", "factorization", "dlrm", "ranking"],
)
def test_a_model_comes_back_from_its_files_with_the_figures_of_its_evaluation(
    task: str, own: dict[str, Any], pictures: tuple[str, ...], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {**own, "training": {"steps": 6}, "checkpoint": {"path": str(tmp_path / "run")}}
    if task == "recommendation":
        (tmp_path / "ratings.csv").write_text("\n".join(["user_id,item_id,rating,timestamp", *ROWS]))
        settings["data"] = {"source": "csv", "path": str(tmp_path / "ratings.csv")}
    config = parse({task: settings})
    figures = loop.train(config, Delivery(export=Export())).figures
    assert all((tmp_path / "run" / picture).stat().st_size > 0 for picture in pictures)
    exported = json.loads((tmp_path / "run" / "model" / "model.json").read_text())
    again = tasks.build(config)
    files = tmp_path / "run" / "model" / exported["version"]
    encoder = json.loads((files / "preprocessing.json").read_text())
    model = models.restored(exported["model"], encoder, load_file(files / "model.safetensors"))
    found = judging.judge(model.eval(), exported["model"], again, torch.device("cpu")).figures
    assert found == pytest.approx(figures, rel=1e-5) and exported["metrics"] == pytest.approx(figures)
