"""Curves as PNG, drawn from the history beside the training: a plot that fails costs a line, never the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw(history: Sequence[Mapping[str, Any]], metric: str, target: Path) -> None:
    """Loss, the metric on held-out data and the learning rate over the steps, one below the other, written to `target` by one rename.

    Args:
        history: rows with `step` and any of `loss`, `learning_rate`, `test_loss` and the metric.
    """
    from matplotlib.figure import Figure  # without pyplot: no global state, no display, safe beside other threads

    panels = [("loss", ["loss", "test_loss"]), (metric.replace("_", " "), [metric]), ("learning rate", ["learning_rate"])]
    figure = Figure(figsize=(8, 9), layout="constrained")
    for axis, (label, names) in zip(figure.subplots(len(panels), 1, sharex=True), panels, strict=True):
        for name in names:
            points = [(row["step"], row[name]) for row in history if name in row]
            if points:
                axis.plot(*zip(*points, strict=True), label=name, marker="o" if len(points) < 40 and name != "loss" else "", markersize=3)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend()
    figure.supxlabel("step")
    partial = target.with_name(f".{target.name}.new")
    figure.savefig(partial, format="png", dpi=110)
    partial.replace(target)
