"""Serving the exported model once the job is complete: what there should be of it, and the condition that says how it is.

Of a job that has ended this is the one part of its spec that is still acted on.
"""

from dataclasses import replace

from lepton_operator import conditions
from lepton_operator.decision import rounds
from lepton_operator.decision.draft import Draft

LOOK_SECONDS = 2.0
"""A Deployment that is not ready yet is asked again after so long."""
TROUBLE_SECONDS = 10.0
READY_SECONDS = 30.0
"""... and one that is, or that is refused."""
WAITING, DEPLOYING, READY, REMOVED = "WaitingForTraining", "Deploying", "Ready", "Removed"


def decide(draft: Draft) -> None:
    """Where this substrate serves nothing (`World.serves`), nothing is said either."""
    job, status = draft.job, draft.status
    if not draft.world.serves:
        return
    if job.serve is None:
        _take_away(draft)
    elif conditions.is_true(status.conditions, conditions.COMPLETE):
        if draft.memory.ended is not None:
            draft.status = replace(draft.status, observed_generation=job.generation)
        _serve(draft)
    elif conditions.is_true(status.conditions, conditions.FAILED):
        reason = status.reason if status.reason == "RequirementNotMet" else "JobFailed"
        _say(draft, False, reason, "the job has failed, so its model is not served")
    else:
        when = f"when {rounds.requirement(job.evaluation)} is reached" if job.evaluation else "when training is complete"
        _say(draft, False, WAITING, f"the model is served {when}")


def directory(draft: Draft) -> str:
    """Of the model that a complete job serves."""
    view = draft.status.evaluation
    return rounds.model_directory(draft.job, draft.world.checkpoints, view.round if view is not None else 0)


def _serve(draft: Draft) -> None:
    job, served, rejection = draft.job, draft.world.served, draft.world.serving_rejection
    assert job.serve is not None
    if served is None:  # not looked yet: the verdict is being written
        _say(draft, False, DEPLOYING, "the Deployment is about to be made")
        draft.wait(0.0)
        return
    if served.foreign:
        about = f"{served.foreign} exists and does not belong to this job, so it is left alone: delete it, or give the job another name"
        _say(draft, False, "NameConflict", about)
        draft.wait(READY_SECONDS)
        return
    if not served.current:
        draft.serve = directory(draft)
    where = f"http://{job.name}-serve.{job.namespace}:{job.serve.port}"
    if rejection is not None and not served.current:
        _say(draft, False, rejection.reason, f"the Deployment or the Service cannot be made: {rejection.message}")
        draft.wait(TROUBLE_SECONDS)
    elif served.ready:
        _say(draft, True, READY, f"{served.ready} of {job.serve.replicas} pods serve {directory(draft)} at {where}/predict")
        draft.wait(READY_SECONDS if served.ready >= job.serve.replicas and served.current else LOOK_SECONDS)
    elif served.trouble:
        _say(draft, False, served.trouble, f"Deployment {job.name}-serve: {served.trouble_message}")
        draft.wait(TROUBLE_SECONDS)
    else:
        _say(draft, False, DEPLOYING, f"no pod of Deployment {job.name}-serve is ready yet")
        draft.wait(LOOK_SECONDS)


def _take_away(draft: Draft) -> None:
    """`serve` was removed from the spec: what was made for it goes."""
    if not conditions.find(draft.status.conditions, conditions.SERVING_READY):
        return
    if draft.world.served is not None and draft.world.served.exists:
        draft.stop_serving = True
        draft.wait(LOOK_SECONDS)
    _say(draft, False, REMOVED, "spec.serve was removed")


def _say(draft: Draft, ready: bool, reason: str, message: str) -> None:
    before = conditions.find(draft.observed.conditions, conditions.SERVING_READY)
    if before is None or (before.status, before.reason) != (ready, reason):
        if ready:
            draft.event("Normal", "Serving", message)
        elif reason not in (WAITING, DEPLOYING, REMOVED, "RequirementNotMet", "JobFailed"):
            draft.event("Warning", "ServingFailed", message)
    draft.condition(conditions.SERVING_READY, ready, reason, message)
