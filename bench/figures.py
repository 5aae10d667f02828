"""Percentiles and the file of raw results, for every bench alike."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def summary(values: Sequence[float]) -> dict[str, float]:
    """n, min, p50, p95 (nearest rank), max."""
    ordered = sorted(values)
    if not ordered:
        return {"n": 0}
    p95 = ordered[min(len(ordered) - 1, round(0.95 * (len(ordered) - 1)))]
    return {
        "n": len(ordered),
        "min": round(ordered[0], 4),
        "p50": round(statistics.median(ordered), 4),
        "p95": round(p95, 4),
        "max": round(ordered[-1], 4),
    }


def save(name: str, content: Mapping[str, Any], path: Path | None = None) -> Path:
    """Writes bench/results/NAME.json (or `path`) and returns where."""
    target = path or RESULTS / f"{name}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=1) + "\n")
    return target


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A line per row of summaries, in columns."""
    width = max((len(name) for name in rows), default=0)
    head = f"{'':{width}}  {'n':>4} {'min':>8} {'p50':>8} {'p95':>8} {'max':>8}"
    lines = [
        f"{name:{width}}  {row['n']:>4} " + " ".join(f"{row.get(key, float('nan')):>8.3f}" for key in ("min", "p50", "p95", "max"))
        for name, row in rows.items()
    ]
    return "\n".join([head, *lines])
