"""Which checkpoints of a directory belong to the run, newest first: pure, from names and the generations' start files.

    gen-3/start.json                        what generation 3 resumed from: {"generation": 2, "step": 120}, or nothing
    gen-3/step-000000140/manifest.json      its commit; without this file the directory does not count

The newest generation's checkpoints are in the line; of the one that it resumed from, those up to that step; and so on back. What an
older generation commits beyond that point, because it has not noticed that it is over, is not in the line and is never loaded.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

_GENERATION = re.compile(r"^gen-(\d+)$")
_STEP = re.compile(r"^step-(\d{9,})$")


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """A checkpoint: step `step`, written by generation `generation`."""

    step: int
    generation: int

    @property
    def path(self) -> str:
        return f"gen-{self.generation}/step-{self.step:09d}"


def generation_of(name: str) -> int | None:
    """The number in `gen-N`, None for any other name."""
    found = _GENERATION.match(name)
    return int(found[1]) if found else None


def step_of(name: str) -> int | None:
    """The number in `step-NNNNNNNNN`, None for any other name."""
    found = _STEP.match(name)
    return int(found[1]) if found else None


def line(steps: Mapping[int, Collection[int]], origins: Mapping[int, Point | None]) -> list[Point]:
    """The line of checkpoints, newest first.

    Args:
        steps: the committed steps of each generation.
        origins: what each generation resumed from; a generation whose start file is unreadable is missing here, and taken to
            have resumed from all that older generations left.
    """
    result: list[Point] = []
    generation, limit = max(steps, default=None), None
    while generation is not None:
        chosen = [step for step in steps.get(generation, ()) if limit is None or step <= limit]
        result += [Point(step, generation) for step in sorted(chosen, reverse=True)]
        if generation in origins:
            origin = origins[generation]
            if origin is None:
                break
            generation, limit = origin.generation, origin.step if limit is None else min(limit, origin.step)
        else:
            generation = max((other for other in steps if other < generation), default=None)
    return result
