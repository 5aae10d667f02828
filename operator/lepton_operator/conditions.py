"""Conditions by the Kubernetes API conventions: one of each type, `lastTransitionTime` moves only when `status` does."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

ACCEPTED = "Accepted"  # the operator can serve this job
PODS_READY = "PodsReady"  # every desired worker's agent has joined
RUNNING = "Running"  # every process of the current generation is started
PROGRESSING = "Progressing"  # the current generation has reported a step
CHECKPOINTING = "Checkpointing"  # checkpoints can be saved; absent while nobody said otherwise
COMPLETE = "Complete"
FAILED = "Failed"
SERVING_READY = "ServingReady"  # the exported model is served; absent where nobody asked for it
FINISHED = "Finished"  # complete or failed, and no worker runs any more
ORDER = (ACCEPTED, PODS_READY, RUNNING, PROGRESSING, CHECKPOINTING, COMPLETE, FAILED, SERVING_READY, FINISHED)

MESSAGE_LIMIT = 2048


@dataclass(frozen=True, slots=True)
class Condition:
    type: str
    status: bool
    reason: str
    message: str
    last_transition: float  # unix seconds
    observed_generation: int = 0


def with_condition(conditions: Iterable[Condition], new: Condition) -> tuple[Condition, ...]:
    """`conditions` with `new` in place of the one of its type; the transition time is kept while the status is the same."""
    by_type = {condition.type: condition for condition in conditions}
    old = by_type.get(new.type)
    if old is not None and old.status == new.status:
        new = replace(new, last_transition=old.last_transition)
    by_type[new.type] = replace(new, message=new.message[:MESSAGE_LIMIT])
    return tuple(by_type[kind] for kind in ORDER if kind in by_type)


def is_true(conditions: Iterable[Condition], kind: str) -> bool:
    return any(condition.type == kind and condition.status for condition in conditions)


def find(conditions: Iterable[Condition], kind: str) -> Condition | None:
    return next((condition for condition in conditions if condition.type == kind), None)
