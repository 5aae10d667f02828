"""How a job looks to its user: counts, conditions, state, and the words for them."""

import math
from dataclasses import replace

from lepton_operator import conditions
from lepton_operator.decision import evaluation
from lepton_operator.decision.draft import Draft
from lepton_operator.decision.evidence import Verdict
from lepton_operator.status import Startup, WorkerCounts
from lepton_operator.worker import Phase, Worker
from lepton_trainer.protocol import messages

JOIN_SECONDS = 60.0
"""A running worker whose agent has not joined for so long is worth a word to the user."""
ONE_TROUBLE = {"ErrImagePull": "ImagePullBackOff"}
"""The kubelet goes back and forth between these: one event, one condition."""


def count(draft: Draft) -> None:
    """The workers in numbers."""
    job, workers = draft.job, draft.world.workers
    verdicts = [j.verdict for j in draft.judgements]
    if draft.memory.ended is not None:
        active, ready = sum(1 for w in workers if w.phase in (Phase.PENDING, Phase.RUNNING)), 0
        succeeded = draft.status.workers.succeeded
    else:
        present = (Verdict.ALIVE, Verdict.UNKNOWN, Verdict.SUSPECTED, Verdict.LEAVING)
        active = sum(1 for verdict in verdicts if verdict in present)
        if not verdicts and draft.memory.group is not None:
            active = draft.memory.group.size
        ready, succeeded = len(_joined(draft)), verdicts.count(Verdict.SUCCEEDED)
    counts = WorkerCounts(
        desired=job.workers.replicas,
        ready=ready,
        active=active,
        succeeded=succeeded,
        failed=len({w.index for w in workers if w.phase is Phase.FAILED and not draft.living(w.index)}),
        summary=f"{active or succeeded}/{job.workers.replicas}",
    )
    draft.status = replace(draft.status, workers=counts)


def describe(draft: Draft) -> None:
    """Conditions and state of a job; of one that has just ended, what no longer holds."""
    if draft.status.state in ("Complete", "Failed"):
        for kind in (conditions.RUNNING, conditions.PROGRESSING):
            if conditions.find(draft.status.conditions, kind):
                draft.condition(kind, False, draft.status.reason, "the job has ended")
        return
    _pods_ready(draft)
    _state(draft)
    _startup(draft)


def running(draft: Draft) -> bool:
    """Whether every process of the current generation is started, and none was lost or failed."""
    group = draft.memory.group
    started = {messages.RUNNING, messages.SUCCEEDED, messages.STOPPED}
    return (
        group is not None
        and bool(draft.judgements)
        and not draft.broken()
        and all(
            j.verdict in (Verdict.SUCCEEDED, Verdict.STOPPED)
            or (j.agent is not None and j.agent.state.generation == group.number and j.agent.state.phase in started)
            for j in draft.judgements
        )
    )


def _joined(draft: Draft) -> set[int]:
    """Wanted indices whose agent has joined and is not known to be lost or leaving."""
    here = (Verdict.ALIVE, Verdict.UNKNOWN, Verdict.SUSPECTED)
    members = {j.member.worker for j in draft.judgements if j.verdict in here and j.member.worker < draft.job.workers.replicas}
    return members | {agent.worker for agent in draft.candidates()}


def _pods_ready(draft: Draft) -> None:
    job = draft.job
    finished = {j.member.worker for j in draft.judgements if j.verdict is Verdict.SUCCEEDED}
    missing = set(range(job.workers.replicas)) - _joined(draft) - finished
    if not missing:
        draft.condition(conditions.PODS_READY, True, "AllJoined", f"all {job.workers.replicas} workers have joined")
        return
    reason, message = _what_is_missing(draft, missing)
    before = conditions.find(draft.observed.conditions, conditions.PODS_READY)
    if reason != "WaitingForWorkers" and (before is None or before.reason != reason):
        draft.event("Warning", reason, message)
    draft.condition(conditions.PODS_READY, False, reason, message)


def _what_is_missing(draft: Draft, missing: set[int]) -> tuple[str, str]:
    """(reason, message), the most useful first: what was refused, what a pod waits for, who cannot reach us."""
    job, rejection = draft.job, draft.world.rejection
    if rejection is not None:
        return rejection.reason, f"a worker cannot be created: {rejection.message}"
    waiting = [w for index in sorted(missing) for w in draft.living(index)]
    troubled = next((w for w in waiting if w.trouble), None)
    if troubled is not None:
        reason = ONE_TROUBLE.get(troubled.trouble, troubled.trouble)
        return reason, f"worker {troubled.index} ({troubled.name}): {troubled.trouble_message}"
    silent = _silent(draft, waiting)
    if silent is not None:
        return "AgentNotJoined", (
            f"worker {silent.index} ({silent.name}) runs, but its agent did not reach the coordinator in {JOIN_SECONDS:.0f} s: "
            f"look at `kubectl logs -n {job.namespace} {silent.name}` and at NetworkPolicies between the pods and the operator"
        )
    return "WaitingForWorkers", f"{len(missing)} of {job.workers.replicas} workers have not joined yet"


def _silent(draft: Draft, waiting: list[Worker]) -> Worker | None:
    """A worker that has run for long without its agent joining; looked at again when the next one will have."""
    for worker in waiting:
        if worker.phase is Phase.RUNNING and draft.speaker(worker) is None and worker.started:
            left = worker.started + JOIN_SECONDS - draft.now.wall
            if left <= 0:
                return worker
            draft.wait(left)
    return None


def _state(draft: Draft) -> None:
    group, memory = draft.memory.group, draft.memory
    broken, runs = draft.broken(), running(draft)
    begins = evaluation.between(draft) or (memory.reason == evaluation.NEW_ROUND and memory.broken_since is None)
    recovering = not begins and (draft.status.rendezvous.generation > 1 or memory.broken_since is not None)
    if group is None:
        pods = conditions.find(draft.status.conditions, conditions.PODS_READY)
        state = "Recovering" if draft.status.rendezvous.generation else "Pending" if pods is None or not pods.status else "Starting"
        reason, message = (pods.reason, pods.message) if pods and not pods.status else ("Starting", "forming the first generation")
        if draft.holding:
            message = draft.holding
    elif evaluation.between(draft):
        state, reason, message = "Starting", evaluation.NEW_ROUND, draft.holding or "the next round waits for its workers"
    elif runs and (memory.stepped or memory.broken_since is None or memory.top_step is None):
        state, reason = "Running", "Running"
        message = f"generation {group.number} runs: {group.size} of {draft.job.workers.replicas} workers, world size {group.world_size}"
    else:
        state = "Recovering" if recovering else "Starting"
        reason = draft.status.history[-1].reason if draft.status.history else "Starting"
        why = f" after: {draft.status.last_failure.message}" if recovering and draft.status.last_failure and broken else ""
        message = draft.holding or f"generation {group.number} is {'being replaced' if broken else 'starting'}{why}"
    if draft.job.evaluation is not None and draft.status.evaluation is not None:
        message = f"round {draft.status.evaluation.round} of {draft.job.evaluation.max_rounds}: {message}"
    draft.status = replace(draft.status, state=state, reason=reason, message=message[: conditions.MESSAGE_LIMIT])
    if group is None:
        return
    if runs:
        draft.condition(conditions.RUNNING, True, "Started", f"all processes of generation {group.number} are started")
    elif conditions.find(draft.status.conditions, conditions.RUNNING):
        draft.condition(conditions.RUNNING, False, reason, message)
    if memory.stepped and not broken:
        draft.condition(conditions.PROGRESSING, True, "Stepping", "steps are being reported")
    elif memory.reason != "Adopted" and conditions.find(draft.status.conditions, conditions.PROGRESSING):
        draft.condition(conditions.PROGRESSING, False, reason, message)


def _startup(draft: Draft) -> None:
    startup: Startup = draft.status.startup
    since = since_creation(draft)
    if startup.pods_seconds is None and not draft.creates and len(draft.world.workers) >= draft.job.workers.replicas:
        startup = replace(startup, pods_seconds=since)
    if startup.joined_seconds is None and draft.memory.group is not None:
        startup = replace(startup, joined_seconds=since)
    if startup.running_seconds is None and running(draft):
        startup = replace(startup, running_seconds=since)
    draft.status = replace(draft.status, startup=startup)


def since_creation(draft: Draft) -> float:
    """Seconds since the job was made, or first seen where that is not known."""
    return max(0.0, draft.now.wall - (draft.job.created or draft.status.start_time))


def loss_text(text: str | None) -> str:
    """Four significant digits; what is not finite is named."""
    if text is None:
        return ""
    value = float(text)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Inf" if value > 0 else "-Inf"
    return f"{value:.4g}"


def rate(value: float | None) -> str:
    """Three significant digits with k and M, as a column shows them."""
    if value is None or not math.isfinite(value) or value <= 0:
        return ""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def duration(seconds: float) -> str:
    """As kubectl writes ages: 45s, 3m20s, 2h5m, 4d3h."""
    whole = round(seconds)
    for unit, size, next_unit, next_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // next_size
            return f"{whole // size}{unit}" + (f"{rest}{next_unit}" if rest else "")
    return f"{whole}s"
