"""Whose job it is: the first status write claims it for one installation, and others leave it alone while that one lives."""

import math
from dataclasses import replace

from lepton_operator import conditions
from lepton_operator.decision import goodput
from lepton_operator.decision.draft import Draft
from lepton_operator.decision.world import Made, Plan
from lepton_operator.job import Job
from lepton_operator.status import Time
from lepton_operator.worker import Phase

LOOK_SECONDS = 30.0
"""Another installation's job is looked at again after so long."""
TOLD_SECONDS = 180.0
"""A kubelet passes a changed annotation on to the files of its pods within a minute or two."""


def of_another(draft: Draft) -> bool:
    """Whether another installation has claimed this job and still lives."""
    claimant = draft.observed.manager
    return bool(claimant) and claimant != draft.world.manager and not draft.world.claimant_gone


def leave_alone(draft: Draft) -> Plan:
    """Another installation's job: said once, and nothing else is done."""
    if draft.memory.claimed_by != draft.observed.manager:
        draft.remember(claimed_by=draft.observed.manager)
        about = f"this job is run by the operator {draft.observed.manager}; {draft.world.manager} leaves it alone"
        draft.event("Warning", "ClaimedByAnother", about)
    return Plan(draft.memory, events=tuple(draft.events), wake=LOOK_SECONDS)


def accept(draft: Draft) -> None:
    """Claims the job and notes what holds for as long as it is served."""
    draft.status = replace(
        draft.status,
        manager=draft.world.manager,
        observed_generation=draft.job.generation,
        start_time=draft.status.start_time or Time(draft.now.wall),
        selector=selector(draft.job),
    )
    draft.condition(conditions.ACCEPTED, True, "Accepted", "the job is served")
    if not draft.observed.manager:
        draft.status = replace(draft.status, state="Pending")
    elif draft.observed.manager != draft.world.manager:
        draft.event("Normal", "Claimed", f"taken over from {draft.observed.manager}, whose Lease has long expired")
        draft.remember(taken_over=draft.now.mono)
    _await_strays(draft)
    if not draft.memory.account.current:
        draft.remember(
            account=goodput.resume(draft.observed.goodput).at_least(draft.memory.account),
            top_step=draft.observed.progress.step,
            made=Made(draft.observed.rendezvous.generation, draft.observed.progress.step or 0),
        )


def _await_strays(draft: Draft) -> None:
    """Agents of a job that was taken over have time to hear of the new coordinator. A worker that never comes is replaced."""
    since, now = draft.memory.taken_over, draft.now
    if since is None:
        return
    if (left := since + TOLD_SECONDS - now.mono) > 0:
        draft.wait(left)
        return
    before = now.wall - (now.mono - since)
    strays = [w for w in draft.world.workers if w.phase is Phase.RUNNING and w.created < before and w.uid not in draft.boots]
    draft.remember(taken_over=None, lost_at={**draft.memory.lost_at, **{w.uid: -math.inf for w in strays}})


def selector(job: Job) -> str:
    """The label selector of the job's pods, as the scale subresource wants it."""
    return f"training.lepton.ai/job-name={job.name}"
