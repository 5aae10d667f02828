"""Whose job it is: the first status write claims it for one installation, and others leave it alone while that one lives."""

from dataclasses import replace

from lepton_operator import conditions
from lepton_operator.decision import goodput
from lepton_operator.decision.draft import Draft
from lepton_operator.decision.world import Made, Plan
from lepton_operator.job import Job
from lepton_operator.status import Time

LOOK_SECONDS = 30.0
"""Another installation's job is looked at again after so long."""


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
    if not draft.memory.account.current:
        draft.remember(
            account=goodput.resume(draft.observed.goodput),
            top_step=draft.observed.progress.step,
            made=Made(draft.observed.rendezvous.generation, draft.observed.progress.step or 0),
        )


def selector(job: Job) -> str:
    """The label selector of the job's pods, as the scale subresource wants it."""
    return f"training.lepton.ai/job-name={job.name}"
