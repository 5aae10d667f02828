"""When enough is enough: the restart budget in its sliding window, jobs that fail without getting anywhere, and how long a retry waits.

Incidents are kept in the job's status, so every answer survives an operator restart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lepton_operator.job import Recovery
from lepton_operator.status import RECENT_LIMIT, Incident

NO_PROGRESS_LIMIT = 3
"""So many generations in a row that broke by a process failure without a step forward fail a job that has reported steps."""
MISCONFIGURED = "Misconfigured"
"""Of an incident: the built-in trainer says that its user has to change something."""
FREE_RETRIES = 2
BACKOFF_BASE_SECONDS = 1.0
BACKOFF_LIMIT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Sentence:
    """Why a job is failed for good."""

    reason: str
    message: str


def within_window(incidents: Sequence[Incident], recovery: Recovery, wall: float) -> tuple[Incident, ...]:
    """The incidents that still count, newest last; what has left the window is forgotten."""
    return tuple(i for i in incidents if wall - i.time < recovery.window_seconds)[-RECENT_LIMIT:]


def verdict(incidents: Sequence[Incident], recovery: Recovery, wall: float, past: int = 0) -> Sentence | None:
    """Whether a job with these incidents (the newest included) must fail; steps up to generation `past` were of an earlier round."""
    counted = within_window(incidents, recovery, wall)
    if counted and counted[-1].reason == MISCONFIGURED:
        return Sentence(MISCONFIGURED, "a restart does not help, the job has to be changed")
    if len(counted) > recovery.max_restarts:
        window = _words(recovery.window_seconds)
        return Sentence(
            "RestartBudgetExceeded",
            f"{len(counted)} failures within {window}, and recovery.maxRestarts allows {recovery.max_restarts} restarts",
        )
    stuck = _stuck_at([i for i in counted if i.generation > past])
    if stuck is not None:
        return Sentence(
            "NoProgress",
            f"{NO_PROGRESS_LIMIT} generations in a row failed without a step beyond {stuck}: a restart does not help, mend the cause",
        )
    return None


def _stuck_at(incidents: Sequence[Incident]) -> int | None:
    """The step beyond which none of the last generations got; the incident before them tells where they began."""
    before, last = incidents[-NO_PROGRESS_LIMIT - 1 : -NO_PROGRESS_LIMIT], incidents[-NO_PROGRESS_LIMIT:]
    if not before or any(i.reason in FREE_OF_BLAME for i in last):
        return None
    start, steps = before[0].step, [i.step for i in last]
    if start is None or any(step is None or step > start for step in steps):
        return None
    return start


FREE_OF_BLAME = frozenset({"PodFailed", "ConnectionLost", "AgentNotBack", "AgentRestarted", "AgentSilent", "NodeLost"})
"""Incidents that are no process failure of the script's own."""


def retry_delay(incidents: Sequence[Incident], progressed_since: bool) -> float:
    """Seconds from the last incident until the next try: none for the first retries, then doubling; none once a step was made since."""
    if progressed_since:
        return 0.0
    in_a_row = 0
    step = incidents[-1].step if incidents else None
    for incident in reversed(incidents):
        if incident.step != step:
            break
        in_a_row += 1
    if in_a_row <= FREE_RETRIES:
        return 0.0
    return float(min(BACKOFF_LIMIT_SECONDS, BACKOFF_BASE_SECONDS * 2.0 ** min(in_a_row - FREE_RETRIES - 1, 10)))


def _words(seconds: float) -> str:
    if seconds % 3600 == 0:
        return f"{int(seconds // 3600)} h"
    if seconds % 60 == 0:
        return f"{int(seconds // 60)} min"
    return f"{seconds:g} s"
