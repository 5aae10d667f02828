"""Failures on the books: each is counted once, explained to the user, and held against the budget when it costs any.

An incident is a generation that broke, or a worker that ended before it joined one.
"""

from dataclasses import replace

from lepton_operator import cause, ending, policies
from lepton_operator.draft import Draft
from lepton_operator.evidence import Kind, Verdict
from lepton_operator.status import Incident, LastFailure, MicroTime, Restarts
from lepton_operator.worker import Phase, Worker

WITNESS_SECONDS = 0.1
"""After failures that are all witnesses, so long for the cause to show itself."""
SUSPICION_SECONDS = 3.0
"""... and so long while a member is suspected."""
EXPLAINED_LIMIT = 8
"""So many lost workers are named in one incident."""


def book(draft: Draft) -> None:
    """Counts each failure once, and fails the job when the budget is spent."""
    incidents = list(draft.observed.restarts.recent)
    known = len(incidents)
    restarts, failure = draft.observed.restarts, draft.status.last_failure
    explained = {uid for incident in incidents for uid in incident.workers}
    if draft.broken() and draft.memory.group is not None and draft.memory.booked != draft.memory.group.number:
        if cause_pending(draft):
            return
        restarts, failure = _broken_generation(draft, restarts, incidents)
        explained |= _lost_uids(draft)
    for worker in draft.world.workers:
        if _never_joined(draft, worker) and worker.uid not in explained:
            failure = cause.of_worker(draft.job, worker, draft.now.wall)
            restarts = replace(restarts, pod=restarts.pod + 1, total=restarts.total + 1)
            incidents.append(Incident(MicroTime(draft.now.wall), failure.reason, 0, (worker.uid,), draft.top_step()))
            draft.event("Warning", "WorkerFailed", failure.message)
    fresh = len(incidents) > known
    kept = policies.within_window(incidents, draft.job.recovery, draft.now.wall) if fresh else tuple(incidents)
    draft.status = replace(draft.status, restarts=replace(restarts, recent=kept), last_failure=failure)
    if fresh and (sentence := policies.verdict(incidents, draft.job.recovery, draft.now.wall)):
        ending.fail(draft, sentence.reason, f"{sentence.message}; the last: {failure.message if failure else ''}")


def cause_pending(draft: Draft) -> bool:
    """Only witnesses so far: the one that they witnessed shows itself in a moment, or is suspected already."""
    failed = [j for j in draft.judgements if j.verdict is Verdict.FAILED]
    if any(j.verdict is Verdict.LOST for j in draft.judgements):
        return False
    if not all(j.agent and j.agent.state.exits and j.agent.state.exits[0].witness for j in failed):
        return False
    since = draft.memory.broken_since or draft.now.mono
    draft.remember(broken_since=since)
    age = draft.now.mono - since
    suspected = any(j.verdict in (Verdict.SUSPECTED, Verdict.UNKNOWN) for j in draft.judgements) and age < SUSPICION_SECONDS
    if age < WITNESS_SECONDS or suspected:
        draft.wait(0.02)
        return True
    return False


def retry_wait(draft: Draft) -> float:
    """Seconds until the next try after repeated failures; 0: now."""
    recent = policies.within_window(draft.status.restarts.recent, draft.job.recovery, draft.now.wall)
    if not recent:
        return 0.0
    top = draft.top_step()
    progressed = top is not None and (recent[-1].step is None or top > recent[-1].step)
    return max(0.0, recent[-1].time + policies.retry_delay(recent, progressed) - draft.now.wall)


def _broken_generation(draft: Draft, restarts: Restarts, incidents: list[Incident]) -> tuple[Restarts, LastFailure]:
    group, now = draft.memory.group, draft.now
    assert group is not None
    culprit, failure = cause.find_cause(draft.job, group, draft.judgements, now.wall)
    if culprit.costs:
        named = tuple(j.member.uid for j in draft.judgements if j.verdict is Verdict.LOST)[:EXPLAINED_LIMIT]
        incidents.append(Incident(MicroTime(now.wall), failure.reason, group.number, named, draft.top_step()))
    draft.event("Warning", "ProcessFailed" if culprit.kind is Kind.PROCESS else "WorkerLost", failure.message)
    draft.remember(booked=group.number, broken_since=draft.memory.broken_since or now.mono)
    rung = culprit.kind.value
    return replace(restarts, **{rung: getattr(restarts, rung) + 1}, total=restarts.total + 1), failure


def _lost_uids(draft: Draft) -> set[str]:
    return {j.member.uid for j in draft.judgements if j.verdict is Verdict.LOST}


def _never_joined(draft: Draft, worker: Worker) -> bool:
    """It ended by itself, and no generation that is remembered had it as a member."""
    by_itself = worker.phase is Phase.FAILED and not worker.deleting and not worker.evicted and worker.index < draft.job.workers.replicas
    return by_itself and worker.uid not in draft.member_uids() and worker.uid not in draft.memory.lost_at
