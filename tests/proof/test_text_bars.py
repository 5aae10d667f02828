"""Text classification on held-out data beside what the field takes for granted, on the same splits; bench/tasks_text.py measures more."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        return runpy.run_path(str(BENCH / "tasks_text.py"))


def accuracies(bench: Any, source: str, model: str, seeds: int) -> list[float]:
    return [row[2]["accuracy"] for _, row in bench["run"](range(seeds), [source], [model])]


@pytest.mark.parametrize("source", ["r8", "newsgroups"])
def test_n_grams_are_ahead_of_the_support_vector_machine_in_the_mean_of_five_seeds(bench: Any, source: str) -> None:
    ours, machine = accuracies(bench, source, "ngrams", 5), accuracies(bench, source, "svm", 1)[0]
    print(f"{source}: ours {np.mean(ours):.4f} {np.round(ours, 4)}, LinearSVC {machine:.4f}")
    assert np.mean(ours) > machine


@pytest.mark.parametrize("model", ["rnn", "transformer"])
def test_models_that_read_in_order_are_within_two_points_of_it_on_r8(bench: Any, model: str) -> None:
    ours, machine = accuracies(bench, "r8", model, 5), accuracies(bench, "r8", "svm", 1)[0]
    print(f"R8: {model} {np.mean(ours):.4f} {np.round(ours, 4)}, LinearSVC {machine:.4f}")
    assert np.mean(ours) >= machine - 0.02
