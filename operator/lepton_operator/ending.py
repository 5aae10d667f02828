"""How a job ends: the verdict, once, and then the winding down until nothing of it runs."""

from dataclasses import replace

from lepton_operator import conditions
from lepton_operator.draft import Draft
from lepton_operator.status import Time
from lepton_operator.worker import Phase
from lepton_operator.world import Delete
from lepton_trainer.protocol import messages

WIND_DOWN_SECONDS = 15.0
"""A finished job's worker that no agent speaks for is deleted after so long."""


def complete(draft: Draft) -> None:
    message = "every worker ended with success"
    draft.event("Normal", "Completed", f"all {len(draft.judgements)} workers ended with success")
    draft.condition(conditions.COMPLETE, True, "Completed", message)
    draft.status = replace(draft.status, state="Complete", reason="Completed", message=message, completion_time=Time(draft.now.wall))


def fail(draft: Draft, reason: str, message: str) -> None:
    draft.failed = True
    draft.event("Warning", reason, message)
    draft.condition(conditions.FAILED, True, reason, message)
    draft.status = replace(draft.status, state="Failed", reason=reason, message=message, completion_time=Time(draft.now.wall))


def wind_down(draft: Draft) -> None:
    """The job's verdict is written: agents are told, whoever does not listen is deleted, and then it is Finished."""
    done = draft.has_been(conditions.COMPLETE)
    since = draft.memory.ended if draft.memory.ended is not None else draft.now.mono
    draft.remember(ended=since)
    active = [w for w in draft.world.workers if w.phase in (Phase.PENDING, Phase.RUNNING)]
    for worker in active:
        draft.shutdown[worker.uid] = messages.COMPLETE if done else messages.JOB_FAILED
        unheard = draft.speaker(worker) is None and (worker.phase is Phase.PENDING or draft.now.mono - since > WIND_DOWN_SECONDS)
        if not worker.deleting and (unheard or draft.now.mono - since > 4 * WIND_DOWN_SECONDS):
            draft.deletes.append(Delete(worker, "the job has ended"))
    if active:
        draft.wait(WIND_DOWN_SECONDS)
        return
    reason, result = ("JobComplete", "complete") if done else ("JobFailed", "failed")
    draft.condition(conditions.FINISHED, True, reason, f"the job is {result} and no worker runs any more")
