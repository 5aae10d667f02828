"""The examples of tables and ratings are short, and run: a small part of each is trained here on rows of the same columns."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
import yaml

from checkout import CHECKOUT
from lepton_operator.local.validation import validate
from lepton_trainer.train import loop
from lepton_trainer.train.config import parse

LOANS = ["age_in_years,duration,purpose,creditability"] + [
    f'{20 + row * 7 % 50},{row * 5 % 60},"{("car", "radio, tv", "repairs")[row % 3]}",{"bad" if row * 5 % 60 > 38 else "good"}'
    for row in range(240)
]
SITES = ["https,long_url,ip_in_url,is_phishing"] + [f"{row % 3 / 2},{row % 5 / 4},{row % 2},{int(row % 3 < 2)}" for row in range(240)]


def job(name: str) -> dict[str, Any]:
    text = (CHECKOUT / "examples" / name).read_text()
    assert text.count("\n") < 15
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def films(base: Path) -> None:
    rows = [(user, (user * 3 + turn * 7) % 50, 1 + (user + turn * 7) % 5, turn) for user in range(30) for turn in range(20)]
    (base / "ml-100k.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *("\t".join(map(str, row)) for row in rows)])
    )
    (base / "ml-100k.user").write_text("\n".join(["user_id:token\tage:token", *(f"{user}\t{20 + user}" for user in range(30))]))
    (base / "ml-100k.item").write_text("\n".join(["item_id:token\tclass:token_seq", *(f"{item}\tDrama War" for item in range(50))]))


@pytest.mark.parametrize(
    ("name", "task", "figure"),
    [
        ("credit.yaml", "tabularClassification", "roc_auc"),
        ("fraud.yaml", "tabularClassification", "roc_auc"),
        ("recommendation.yaml", "recommendation", "rmse"),
    ],
)
def test_a_small_part_of_an_example_is_trained(name: str, task: str, figure: str, tmp_path: Path) -> None:
    manifest = job(name)
    validate(manifest)
    settings = manifest["spec"]["trainer"]["builtin"][task]
    assert settings["data"]["path"].startswith("/checkpoints/"), "where the claim is mounted"
    (tmp_path / "germancredit.csv").write_text("\n".join(LOANS))
    (tmp_path / "phishing.csv.gz").write_bytes(gzip.compress("\n".join(SITES).encode()))
    films(tmp_path)
    settings["data"]["path"] = str(tmp_path / "germancredit.csv" if name == "credit.yaml" else tmp_path)
    settings |= {"training": {"epochs": 5.0}, "checkpoint": {"path": str(tmp_path / "run")}, "output": {"plots": False}}
    figures = loop.train(parse({task: settings})).figures
    assert figures[figure] > 0.7 if figure == "roc_auc" else figures[figure] < 2.0
    if figure == "roc_auc":
        assert figures["threshold"] < 0.5, "a miss costs five times as much"
