"""ROC AUC, average precision and the cheapest threshold from histograms of a score: sums that add up over batches and processes.

A score is the log-odds of a class; the bins are even in its sigmoid at a quarter of the scale, fine near even odds and still apart at
odds of a million to one. Both figures are those of the scores rounded to their bin.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_SCALE = 4.0

Counts = NDArray[np.float64]


def counts(log_odds: Tensor, positive: Tensor, bins: int) -> Tensor:
    """Rows per bin of a score [n]: fp64 [2 * bins], first of those that are not positive [n, bool], then of those that are."""
    place = (torch.sigmoid(log_odds.double() / _SCALE) * bins).long().clamp_(0, bins - 1)
    return torch.bincount(place + positive.long() * bins, minlength=2 * bins).double()


def probability(edge: int, bins: int) -> float:
    """The probability at the lower edge of a bin; 1 above the last."""
    if edge in (0, bins):
        return float(edge == bins)
    return float(1.0 / (1.0 + ((bins - edge) / edge) ** _SCALE))


def edge_of(odds: float, bins: int) -> int:
    """The bin's edge that is nearest to odds above 0."""
    edge: int = round(bins / (1.0 + odds ** (-1.0 / _SCALE)))
    return edge


def roc_auc(negative: Counts, positive: Counts) -> float:
    """The chance that a positive row scores above a negative one, ties counting half; NaN where one kind is missing."""
    if not negative.sum() or not positive.sum():
        return math.nan
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / negative.sum() / positive.sum())


def average_precision(negative: Counts, positive: Counts) -> float:
    """The mean over positive rows of the precision at their score; NaN where there is none."""
    if not positive.sum():
        return math.nan
    found, false = np.cumsum(positive[::-1]), np.cumsum(negative[::-1])
    precision = found / np.maximum(found + false, 1.0)
    return float((precision * positive[::-1]).sum() / positive.sum())


def cheapest(negative: Counts, positive: Counts, false_alarm: float, miss: float) -> int:
    """The edge from which on a row is best called positive.

    Of all that cost no more than the least plus one standard error of it, the one nearest to what the costs alone say: a few rows of
    validation do not move a threshold that is good enough (the rule of Breiman et al., 1984, for pruning).
    """
    false_alarms = negative.sum() - np.concatenate([[0.0], np.cumsum(negative)])
    missed = np.concatenate([[0.0], np.cumsum(positive)])
    cost = false_alarms * false_alarm + missed * miss
    least = int(cost.argmin())
    error = math.sqrt(false_alarms[least] * false_alarm**2 + missed[least] * miss**2)
    candidates = np.flatnonzero(cost <= cost[least] + error)
    return int(candidates[np.abs(candidates - edge_of(false_alarm / miss, len(positive))).argmin()])
