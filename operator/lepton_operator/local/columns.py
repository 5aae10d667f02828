"""A job in one line, with the columns that `kubectl get ltj` shows."""

import time
from collections.abc import Sequence
from typing import Any

from lepton_operator.decision import view
from lepton_operator.job import parse_time
from lepton_operator.status import read_status

HEADER = ("NAME", "STATE", "WORKERS", "STEP", "PROGRESS", "LOSS", "ROUND", "METRIC", "THROUGHPUT", "ETA", "RESTARTS", "AGE")


def row(body: dict[str, Any]) -> tuple[str, ...]:
    """One line's cells of a stored job; what is not known yet is empty."""
    status = read_status(body["status"])
    seen, rounds = status.progress, status.evaluation
    return (
        str(body["metadata"]["name"]),
        status.state,
        status.workers.summary,
        "" if seen.step is None else str(seen.step),
        seen.percent,
        seen.loss,
        str(rounds.round) if rounds is not None else "",
        rounds.value if rounds is not None else "",
        seen.throughput,
        seen.eta,
        str(status.restarts.total),
        view.duration(time.time() - parse_time(body["metadata"]["creationTimestamp"])),
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """As kubectl lays tables out: each column as wide as it needs, three spaces between."""
    lines = [HEADER, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join("   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
