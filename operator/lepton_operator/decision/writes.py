"""What of a status is worth a write now: a job that just runs costs few.

What decides or ends something is written at once; counts and progress on a schedule (2, 5 and 10 s after the first step, then every 30 s,
and at the end) or along with what is written anyway.
"""

from dataclasses import replace

from lepton_operator import conditions
from lepton_operator.decision.draft import Draft
from lepton_operator.status import CheckpointView, ProgressView, Startup, Status, WorkerCounts

PROGRESS_SCHEDULE = (2.0, 5.0, 10.0)
PROGRESS_SECONDS = 30.0
COUNTS_SECONDS = 5.0
"""A change of counts alone waits so long: often something that is written anyway follows it."""


def due(draft: Draft) -> Status | None:
    """The status to write now, if any; where a write is put off, the plan looks again in time."""
    now, status, observed = draft.now.mono, draft.status, draft.observed
    if not draft.memory.written:  # a new leader: what is written is as fresh as can be known
        draft.remember(written=now)
    memory = draft.memory
    since_write = now - memory.written
    write = not draft.world.job.status or significant(status) != significant(observed)
    if status.workers == observed.workers:
        draft.remember(counts_since=None)
    else:
        counts_since = now if draft.memory.counts_since is None else draft.memory.counts_since
        draft.remember(counts_since=counts_since)
        write |= _ready(draft, counts_since + COUNTS_SECONDS - now, write)
    if memory.first_step is not None and memory.ended is None:
        write |= _ready(draft, _progress_left(draft, since_write), write)
    if not write:
        return None
    if memory.first_step is not None:
        passed = sum(1 for moment in PROGRESS_SCHEDULE if moment <= now - memory.first_step)
        draft.remember(progress_writes=max(memory.progress_writes, passed))
    draft.remember(written=now, counts_since=None)
    if memory.first_step is not None and memory.ended is None:
        draft.wait(_progress_left(draft, 0.0))
    if status.state in ("Complete", "Failed") and memory.ended is None:
        draft.wait(0.0)  # on to the winding down
    return status


def significant(status: Status) -> Status:
    """The part of a status whose change is written at once."""
    return replace(
        status,
        message="",
        workers=WorkerCounts(desired=status.workers.desired),
        progress=ProgressView(),
        checkpoint=CheckpointView(),
        startup=Startup(),
        evaluation=replace(status.evaluation, value="") if status.evaluation is not None else None,
        goodput=replace(status.goodput, ratio="", productive_seconds=0.0, lost_seconds={}, mean_recovery_seconds=None),
        conditions=tuple(_without_words(c) for c in status.conditions),
    )


def _without_words(condition: conditions.Condition) -> conditions.Condition:
    words = condition.message if condition.type == conditions.SERVING_READY else ""  # nothing else will be written with them
    return replace(condition, message=words, last_transition=0.0)


def _ready(draft: Draft, left: float, writing: bool) -> bool:
    if left > 0 and not writing:
        draft.wait(left)
    return left <= 0


def _progress_left(draft: Draft, since_write: float) -> float:
    """Seconds until progress is to be written."""
    memory = draft.memory
    if memory.first_step is not None and memory.progress_writes < len(PROGRESS_SCHEDULE):
        return PROGRESS_SCHEDULE[memory.progress_writes] - (draft.now.mono - memory.first_step)
    return PROGRESS_SECONDS - since_write
