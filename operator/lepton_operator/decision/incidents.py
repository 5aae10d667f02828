"""Failures on the books: each is counted once, explained to the user, and held against the budget when it costs any.

An incident is a generation that broke, or a worker that ended before it joined one.
"""

from collections.abc import Sequence
from dataclasses import replace

from lepton_operator.decision import cause, ending, policies
from lepton_operator.decision.draft import Draft
from lepton_operator.decision.evidence import Kind, Verdict
from lepton_operator.decision.membership import generation_of
from lepton_operator.status import RECENT_LIMIT, Incident, LastFailure, MicroTime, Restarts
from lepton_operator.worker import Phase, Worker

WITNESS_SECONDS = 0.1
"""After failures that are all witnesses, so long for the cause to show itself."""
SUSPICION_SECONDS = 3.0
"""... and so long while a member is suspected."""
WITNESS_POLL_SECONDS = 0.05
EXPLAINED_LIMIT = 8
"""So many lost workers are named in one incident."""


def book(draft: Draft) -> None:
    """Counts each failure once, and fails the job when the budget is spent."""
    incidents = list(draft.observed.restarts.recent)
    known = len(incidents)
    restarts, failure = draft.status.restarts, draft.status.last_failure
    if draft.broken() and draft.memory.group is not None and restarts.generation != draft.memory.group.number:
        if cause_pending(draft):
            return
        restarts, failure = _broken_generation(draft, restarts, incidents)
    explained = {uid for incident in incidents for uid in incident.workers}
    for worker in draft.world.workers:
        if _never_joined(draft, worker) and worker.uid not in explained:
            failure = cause.of_worker(draft.job, worker, draft.now.wall)
            restarts = replace(restarts, pod=restarts.pod + 1, total=restarts.total + 1)
            incidents.append(Incident(MicroTime(draft.now.wall), failure.reason, 0, (worker.uid,), draft.top_step()))
            draft.event("Warning", "WorkerFailed", failure.message)
    fresh = len(incidents) > known
    kept = _kept(draft, incidents) if fresh else tuple(incidents)
    draft.status = replace(draft.status, restarts=replace(restarts, recent=kept), last_failure=failure)
    if fresh and (sentence := policies.verdict(incidents, draft.job.recovery, draft.now.wall, draft.past)):
        ending.fail(draft, sentence.reason, f"{sentence.message}; the last: {failure.message if failure else ''}")


def cause_pending(draft: Draft) -> bool:
    """Only witnesses so far: the one that they witnessed shows itself in a moment, or is suspected already."""
    if any(j.verdict in (Verdict.LOST, Verdict.LEAVING) for j in draft.judgements):
        return False
    failed = [j for j in draft.judgements if j.verdict is Verdict.FAILED]
    if not all(j.agent and j.agent.state.exits and j.agent.state.exits[0].witness for j in failed):
        return False
    since = draft.memory.evident_since
    age = draft.now.mono - since if since is not None else 0.0
    suspected = any(j.verdict in (Verdict.SUSPECTED, Verdict.UNKNOWN) for j in draft.judgements) and age < SUSPICION_SECONDS
    if age < WITNESS_SECONDS or suspected:
        draft.wait(WITNESS_POLL_SECONDS)
        return True
    return False


def regroup_wait(draft: Draft) -> float:
    """Seconds until the next generation may be tried after repeated failures; 0: now."""
    recent = [i for i in _recent(draft) if i.generation > draft.past]
    if not recent:
        return 0.0
    top = draft.top_step()
    progressed = top is not None and (recent[-1].step is None or top > recent[-1].step)
    return _left(draft, recent[-1], policies.retry_delay(recent, progressed))


def create_wait(draft: Draft) -> float:
    """Seconds until the next worker may be made after workers that ended before they joined; what the group achieves is no excuse."""
    recent = [replace(i, step=None) for i in _recent(draft) if not i.generation]
    return _left(draft, recent[-1], policies.retry_delay(recent, False)) if recent else 0.0


def _recent(draft: Draft) -> Sequence[Incident]:
    return policies.within_window(draft.status.restarts.recent, draft.job.recovery, draft.now.wall)


def _left(draft: Draft, last: Incident, delay: float) -> float:
    return max(0.0, min(delay, last.time + delay - draft.now.wall))  # a clock that was set back must not make it longer


def _kept(draft: Draft, incidents: Sequence[Incident]) -> tuple[Incident, ...]:
    """Those within the window, and those that explain a worker which is not replaced yet: it must not be counted again."""
    current = {w.uid for w in draft.world.workers if _never_joined(draft, w)}
    counted = set(policies.within_window(incidents, draft.job.recovery, draft.now.wall))
    return tuple(i for i in incidents if i in counted or current.intersection(i.workers))[-RECENT_LIMIT:]


def _broken_generation(draft: Draft, restarts: Restarts, incidents: list[Incident]) -> tuple[Restarts, LastFailure]:
    group, now = draft.memory.group, draft.now
    assert group is not None
    culprit, failure = cause.find_cause(draft.job, group, draft.judgements, now.wall, draft.memory.pods)
    if culprit.costs:
        named = tuple(j.member.uid for j in draft.judgements if j.verdict is Verdict.LOST)[:EXPLAINED_LIMIT]
        incidents.append(Incident(MicroTime(now.wall), failure.reason, group.number, named, draft.top_step()))
    draft.event("Warning", "ProcessFailed" if culprit.kind is Kind.PROCESS else "WorkerLost", failure.message)
    rung = culprit.kind.value
    counted = replace(restarts, **{rung: getattr(restarts, rung) + 1}, total=restarts.total + 1, generation=group.number)
    return counted, failure


def _never_joined(draft: Draft, worker: Worker) -> bool:
    """It ended by itself, no generation had it as a member, and it is not replaced yet.

    One that ended with 0 before it joined is no better than one that failed: it would be replaced without end.
    """
    if worker.phase not in (Phase.FAILED, Phase.SUCCEEDED) or worker.deleting or worker.evicted:
        return False
    if worker.index >= draft.job.workers.replicas or worker.uid in draft.memory.joined or worker.uid in draft.member_uids():
        return False
    if draft.living(worker.index) or generation_of(worker):
        return False
    return not any(other.index == worker.index and other.created > worker.created for other in draft.world.workers)
