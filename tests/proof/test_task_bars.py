"""Tables and ratings against what the field takes for granted, on the same splits, the mean of five seeds; the measuring is the bench's."""

from __future__ import annotations

import argparse
import runpy
from typing import Any

import pytest

from checkout import CHECKOUT

SEEDS = 5


@pytest.fixture(scope="module")
def bench(monkeypatch_module: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch_module.syspath_prepend(str(CHECKOUT / "bench"))
    return runpy.run_path(str(CHECKOUT / "bench" / "tasks.py"))


@pytest.fixture(scope="module")
def monkeypatch_module() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


def measured(bench: dict[str, Any], task: str) -> dict[str, Any]:
    rows = list(bench["MEASURES"][task](range(SEEDS), argparse.Namespace(mnist=None)))
    found: dict[str, Any] = bench["summed"](rows)
    print(found)
    return found


def test_tables_are_level_with_gradient_boosted_trees_and_costs_are_kept_down(bench: dict[str, Any]) -> None:
    found = measured(bench, "tabularClassification")
    ours, trees = found["phishing"]["lepton"], found["phishing"]["HistGradientBoosting"]
    for figure in ("roc_auc", "average_precision"):
        assert ours[figure]["n"] == SEEDS and ours[figure]["mean"] >= trees[figure]["mean"], figure
    credit = found["credit"]["lepton"]
    assert credit["cost"]["mean"] < 0.7, "calling each of the loans bad costs 0.7 a loan, each good 1.5"


def test_ratings_are_guessed_within_the_bars_and_rankings_are_ahead_of_popularity(bench: dict[str, Any]) -> None:
    found = measured(bench, "recommendation")
    rating, ranking = found["movielens, rating"], found["movielens, ranking"]
    assert rating["lepton, factorization"]["rmse"]["mean"] <= 0.935
    assert min(rating[who]["rmse"]["mean"] for who in rating if who.startswith("lepton")) <= 0.92
    for figure in ("hit_rate_at_10", "ndcg_at_10"):
        assert ranking["lepton, ranking"][figure]["mean"] > ranking["popularity"][figure]["mean"], figure
