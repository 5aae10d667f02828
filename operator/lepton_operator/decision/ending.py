"""How a job ends: the verdict, once, and then the winding down until nothing of it runs."""

import math
from collections.abc import Sequence
from dataclasses import replace

from lepton_operator import conditions
from lepton_operator.decision import goodput
from lepton_operator.decision.draft import Draft
from lepton_operator.decision.world import Delete
from lepton_operator.status import Time
from lepton_operator.worker import Phase, Worker
from lepton_trainer.protocol import messages

WIND_DOWN_SECONDS = 15.0
"""A finished job's worker that no agent speaks for is deleted after so long."""
DEAF_SECONDS = 60.0
"""... and one whose agent was told and does not end, after so long."""


def complete(draft: Draft, message: str = "every worker ended with success") -> None:
    draft.decided = True
    draft.event("Normal", "Completed", f"all {len(draft.judgements)} workers ended with success")
    draft.condition(conditions.COMPLETE, True, "Completed", message)
    draft.status = replace(draft.status, state="Complete", reason="Completed", message=message, completion_time=Time(draft.now.wall))


def fail(draft: Draft, reason: str, message: str) -> None:
    draft.decided = True
    draft.event("Warning", reason, message)
    draft.condition(conditions.FAILED, True, reason, message)
    about = message[: conditions.MESSAGE_LIMIT]
    draft.status = replace(draft.status, state="Failed", reason=reason, message=about, completion_time=Time(draft.now.wall))


def wind_down(draft: Draft) -> None:
    """The job's verdict is written: agents are told, whoever does not listen is deleted, and then it is Finished.

    A worker that appears after that (a creation that was under way) meets the same end, and nothing else changes.
    """
    done = draft.has_been(conditions.COMPLETE)
    if draft.memory.ended is None:
        account = goodput.resume(draft.observed.goodput).at_least(draft.memory.account)
        draft.remember(ended=_ended(draft), account=account)
    since = draft.memory.ended or 0.0
    here = [w for w in draft.world.workers if not (w.deleting and not w.node_ready)]
    running = [w for w in here if w.phase in (Phase.PENDING, Phase.RUNNING)]
    lingering = [w for w in here if w.lingering]
    for worker in running:
        draft.shutdown[worker.uid] = messages.COMPLETE if done else messages.JOB_FAILED
        left = _patience(draft, worker, since)
        if left <= 0 and not worker.deleting:
            draft.deletes.append(Delete(worker, "the job has ended", None if worker.node_ready else 0.0))
        draft.wait(left if left > 0 else WIND_DOWN_SECONDS)
    end_lingering(draft, lingering, since)
    if running or lingering or draft.has_been(conditions.FINISHED):
        return
    reason, result = ("JobComplete", "complete") if done else ("JobFailed", "failed")
    draft.condition(conditions.FINISHED, True, reason, f"the job is {result} and no worker runs any more")


def end_lingering(draft: Draft, workers: Sequence[Worker], since: float = -math.inf) -> None:
    """Deletes pods that only a sidecar keeps running: they hold their node's room, and no job is over while a pod of it runs.

    The sidecar is given as long as an agent that nobody speaks for, from the end of its trainer and from `since` (mono).
    """
    for worker in workers:
        ended = draft.now.mono - (draft.now.wall - worker.ended) if worker.ended else -math.inf
        left = min(WIND_DOWN_SECONDS, max(since, ended) + WIND_DOWN_SECONDS - draft.now.mono)
        if left > 0:
            draft.wait(left)
        elif not worker.deleting:
            draft.deletes.append(Delete(worker, "its trainer has ended and a sidecar runs on"))
            about = f"worker {worker.index} ({worker.name}): its trainer has ended, but a sidecar keeps the pod running, so it is deleted"
            draft.event("Warning", "SidecarRunsOn", f"{about}; make the sidecar an init container with restartPolicy: Always")


def _ended(draft: Draft) -> float:
    """When the verdict was written, on the clock of this machine; it survives a restart of the operator."""
    completed = draft.observed.completion_time
    return draft.now.mono - (max(0.0, draft.now.wall - completed) if completed else 0.0)


def _patience(draft: Draft, worker: Worker, since: float) -> float:
    """Seconds that a worker is still given to end by itself."""
    if draft.speaker(worker) is not None:
        return since + DEAF_SECONDS - draft.now.mono
    heard = worker.uid in draft.boots or worker.uid in draft.memory.joined
    if worker.phase is Phase.PENDING and not heard:  # the kubelet's word for one that has joined may only be late
        return 0.0
    return max(since, draft.world.leading_since, draft.world.listening_since) + WIND_DOWN_SECONDS - draft.now.mono
