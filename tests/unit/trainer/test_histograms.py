"""Figures from histograms are those of scikit-learn on the scores themselves, and the threshold is where the costs are least."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from lepton_trainer.train import histograms

BINS = 1 << 14


def drawn(shift: float, rare: float, scale: float, count: int = 4000) -> tuple[Any, Any]:
    """Log-odds and which rows are positive."""
    generator = np.random.default_rng(3)
    positive = generator.random(count) < rare
    return scale * (generator.standard_normal(count) + shift * positive), positive


def counted(scores: Any, positive: Any) -> Any:
    return histograms.counts(torch.from_numpy(scores), torch.from_numpy(positive), BINS).reshape(2, -1).numpy()


@pytest.mark.parametrize("shift", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("rare", [0.5, 0.02])
@pytest.mark.parametrize("scale", [0.3, 1.0, 8.0])
def test_both_areas_are_scikit_learns_within_a_thousandth(shift: float, rare: float, scale: float) -> None:
    scores, positive = drawn(shift, rare, scale)
    found = counted(scores, positive)
    assert histograms.roc_auc(*found) == pytest.approx(roc_auc_score(positive, scores), abs=1e-3)
    assert histograms.average_precision(*found) == pytest.approx(average_precision_score(positive, scores), abs=1e-3)


def test_counts_add_up_over_any_split_of_the_rows() -> None:
    scores, positive = drawn(1.0, 0.3, 2.0)
    parts = [counted(scores[first : first + 700], positive[first : first + 700]) for first in range(0, 4000, 700)]
    assert np.array_equal(sum(parts), counted(scores, positive))


def test_scores_that_are_all_alike_are_worth_a_coin_and_extremes_stay_in_the_ends() -> None:
    same = counted(np.zeros(10), np.arange(10) < 3)
    assert histograms.roc_auc(*same) == 0.5 and histograms.average_precision(*same) == pytest.approx(0.3)
    ends = counted(np.array([-1e4, 1e4]), np.array([False, True]))
    assert ends[0, 0] == 1 and ends[1, -1] == 1
    assert math.isnan(histograms.roc_auc(*counted(np.zeros(2), np.ones(2, dtype=bool))))


@pytest.mark.parametrize(("false_alarm", "miss"), [(1.0, 1.0), (1.0, 20.0), (20.0, 1.0)])
def test_the_threshold_costs_hardly_more_than_the_best_there_is(false_alarm: float, miss: float) -> None:
    scores, positive = drawn(1.5, 0.3, 2.0)

    def cost(threshold: float) -> float:
        said = 1 / (1 + np.exp(-scores)) >= threshold
        return float((said & ~positive).sum() * false_alarm + (~said & positive).sum() * miss)

    edge = histograms.cheapest(*counted(scores, positive), false_alarm, miss)
    best = min(cost(threshold) for threshold in np.linspace(0, 1, 4001))
    assert cost(histograms.probability(edge, BINS)) <= best + math.sqrt(best * max(false_alarm, miss))


def test_costs_alone_decide_where_the_rows_do_not_and_rows_where_they_do() -> None:
    nothing = counted(np.zeros(0), np.zeros(0, dtype=bool))
    assert histograms.probability(histograms.cheapest(*nothing, 1.0, 4.0), BINS) == pytest.approx(0.2, abs=1e-3)
    shifted = np.concatenate([np.full(500, -4.0), np.full(500, -2.0)])
    edge = histograms.cheapest(*counted(shifted, np.arange(1000) >= 500), 1.0, 1.0)
    assert 1 / (1 + math.exp(4.0)) < histograms.probability(edge, BINS) <= 1 / (1 + math.exp(2.0))


def test_an_edge_and_its_probability_belong_together() -> None:
    for edge in (1, 5, BINS // 3, BINS - 40):
        chance = histograms.probability(edge, BINS)
        assert histograms.edge_of(chance / (1 - chance), BINS) == edge
    assert histograms.probability(0, BINS) == 0.0 and histograms.probability(BINS, BINS) == 1.0
    assert histograms.edge_of(1e-6 / 1e6, BINS) < 20 and histograms.edge_of(1e6 / 1e-300, BINS) == BINS, "any costs have an edge"
