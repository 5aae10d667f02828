"""What the trainer's benches share: quiet runs, rounds that alternate between the sides, and the raw results as a file."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "trainer_image")]


def rounds(sides: dict[str, Callable[[], T]], count: int) -> dict[str, list[T]]:
    """Call each side once per round, in an order that turns, so that what others do on the machine falls on all alike."""
    found: dict[str, list[T]] = {name: [] for name in sides}
    names = list(sides)
    for number in range(count + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            value = sides[name]()
            if number:  # the first round warms up
                found[name].append(value)
    return found


def summary(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values), "n": len(values)}


def write(name: str, result: dict[str, Any]) -> None:
    """Print the result and keep it with what it was measured on."""
    from bench import machine

    target = ROOT / "bench" / "results" / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({"machine": machine.facts(), **result}, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "raw"}, indent=1))
