"""The one decision: given a job, its workers, its agents and the time, what must be done now.

Level-triggered: it never asks what happened, only what is. It does nothing itself and remembers nothing but the `Memory` that it returns; a
memory that is lost (a new leader) is rebuilt from status and from what the agents report. A number is won by the status write that carries
it: the caller writes `Plan.status` first and only then adopts `Plan.memory` and delivers `Plan.order`.
"""

from lepton_operator import conditions
from lepton_operator.decision import (
    claim,
    ending,
    evaluation,
    incidents,
    membership,
    notices,
    progress,
    regroup,
    serving,
    view,
    workforce,
    writes,
)
from lepton_operator.decision.draft import Draft
from lepton_operator.decision.world import Delete, Memory, Plan, Rejection, World
from lepton_operator.worker import Clock

__all__ = ["Delete", "Memory", "Plan", "Rejection", "World", "plan"]


def plan(world: World, memory: Memory, now: Clock) -> Plan:
    """What has to be done for `world.job` at `now`."""
    draft = Draft(world, memory, now)
    if claim.of_another(draft):
        return claim.leave_alone(draft)
    if draft.has_been(conditions.COMPLETE) or draft.has_been(conditions.FAILED):
        ending.wind_down(draft)
        return conclude(draft)
    claim.accept(draft)
    evaluation.begin(draft)
    membership.adopt(draft)
    membership.judge(draft)
    notices.tell(draft)
    progress.count_again(draft)
    evaluation.follow(draft)
    if membership.all_succeeded(draft) and not evaluation.between(draft) and not draft.decided:
        if draft.job.evaluation is None:
            ending.complete(draft)
        else:
            evaluation.end(draft)
    if not draft.decided:
        incidents.book(draft)
    if not draft.decided:
        workforce.fill(draft)
        regroup.regroup(draft)
        workforce.trim(draft)
    return conclude(draft)


def conclude(draft: Draft) -> Plan:
    """Describes the state of things, and settles whether that is written now."""
    if not draft.returning:
        view.count(draft)
    if draft.memory.ended is None and not draft.returning:
        progress.follow(draft)
        view.describe(draft)
        progress.account(draft)
    serving.decide(draft)
    return draft.plan(writes.due(draft))
