"""How a job looks to its user: counts, conditions, state, progress; and which changes of that are worth a write now.

A running job costs few writes: what decides or ends something is written at once, counts and progress on a schedule (2, 5 and 10 s
after the first step, then every 30 s, and at the end).
"""

import math
from dataclasses import replace

from lepton_operator import conditions, generation, goodput
from lepton_operator.draft import Draft
from lepton_operator.evidence import Verdict
from lepton_operator.status import CheckpointView, MicroTime, ProgressView, Startup, Status, Time, WorkerCounts
from lepton_operator.worker import Phase
from lepton_operator.world import Plan

PROGRESS_SCHEDULE = (0.0, 2.0, 5.0, 10.0)
PROGRESS_SECONDS = 30.0
COUNTS_SECONDS = 5.0
"""A change of counts alone waits so long after the last write."""
JOIN_SECONDS = 60.0
"""A running worker whose agent has not joined for so long is worth a word to the user."""


def conclude(draft: Draft) -> Plan:
    """Describes the state of things and settles what must be written now, and what can wait."""
    describe(draft)
    status, waits = due(draft)
    if status is not None:
        draft.remember(written=draft.now.mono)
    draft.waits += waits
    return draft.plan(status)


def describe(draft: Draft) -> None:
    """Fills in everything of the status that is a view of the facts, and the account of the job's seconds."""
    _counts(draft)
    if conditions.is_true(draft.observed.conditions, conditions.COMPLETE) or conditions.is_true(
        draft.observed.conditions, conditions.FAILED
    ):
        return
    terminal = draft.status.state in ("Complete", "Failed")
    _progress(draft)
    _first_step(draft)
    if terminal:
        for kind in (conditions.RUNNING, conditions.PROGRESSING):
            if conditions.find(draft.status.conditions, kind):
                draft.condition(kind, False, draft.status.reason, "the job has ended")
    else:
        _pods_ready(draft)
        _state(draft)
    _account(draft, terminal)


def _counts(draft: Draft) -> None:
    job = draft.job
    active = sum(1 for j in draft.judgements if j.verdict in (Verdict.ALIVE, Verdict.UNKNOWN, Verdict.SUSPECTED, Verdict.LEAVING))
    if not draft.judgements and draft.memory.group is not None and not draft.shutdown:
        active = draft.memory.group.size
    succeeded = sum(1 for j in draft.judgements if j.verdict is Verdict.SUCCEEDED)
    if draft.memory.ended is not None:
        active = sum(1 for w in draft.world.workers if w.phase in (Phase.PENDING, Phase.RUNNING))
        succeeded = draft.status.workers.succeeded
    desired = job.workers.replicas
    counts = WorkerCounts(
        desired=desired,
        ready=len(draft.candidates()) if draft.memory.ended is None else 0,
        active=active,
        succeeded=succeeded,
        failed=sum(1 for w in draft.world.workers if w.phase is Phase.FAILED),
        summary=f"{active or succeeded}/{desired}",
    )
    draft.status = replace(draft.status, workers=counts)


def _pods_ready(draft: Draft) -> None:
    job = draft.job
    missing = job.workers.replicas - len(draft.candidates()) - draft.status.workers.succeeded
    if missing <= 0:
        draft.condition(conditions.PODS_READY, True, "AllJoined", f"all {job.workers.replicas} workers have joined")
        return
    rejection = draft.world.rejection
    troubled = next((w for i in range(job.workers.replicas) for w in draft.living(i) if w.trouble), None)
    if rejection is not None:
        reason, message = rejection.reason, f"a worker cannot be created: {rejection.message}"
    elif troubled is not None:
        reason, message = troubled.trouble, f"worker {troubled.index} ({troubled.name}): {troubled.trouble_message}"
    else:
        reason, message = "WaitingForWorkers", f"{missing} of {job.workers.replicas} workers have not joined yet"
        silent = [
            w
            for i in range(job.workers.replicas)
            for w in draft.living(i)
            if w.phase is Phase.RUNNING and draft.speaker(w) is None and w.started and draft.now.wall - w.started > JOIN_SECONDS
        ]
        if silent:
            reason = "AgentNotJoined"
            message = (
                f"worker {silent[0].index} ({silent[0].name}) runs, but its agent did not reach the coordinator in {JOIN_SECONDS:.0f} s: "
                f"look at `kubectl logs -n {job.namespace} {silent[0].name}` and at NetworkPolicies between the pods and the operator"
            )
    before = conditions.find(draft.observed.conditions, conditions.PODS_READY)
    if reason != "WaitingForWorkers" and (before is None or before.reason != reason or before.status):
        draft.event("Warning", reason, message)
    draft.condition(conditions.PODS_READY, False, reason, message)


def _state(draft: Draft) -> None:
    group, memory = draft.memory.group, draft.memory
    recovering = draft.status.rendezvous.generation > 1 or memory.broken_since is not None
    running = group is not None and bool(draft.judgements) and generation.started(group, draft.world.agents)
    broken = any(j.bad for j in draft.judgements)
    if group is None:
        pods = conditions.find(draft.status.conditions, conditions.PODS_READY)
        state = "Recovering" if draft.status.rendezvous.generation else "Pending" if pods is None or not pods.status else "Starting"
        reason, message = (pods.reason, pods.message) if pods and not pods.status else ("Starting", "forming the first generation")
        if draft.holding:
            message = draft.holding
    elif running and not broken and (memory.stepped or memory.broken_since is None or memory.top_step is None):
        state, reason = "Running", "Running"
        message = f"generation {group.number} runs: {group.size} of {draft.job.workers.replicas} workers, world size {group.world_size}"
    else:
        state = "Recovering" if recovering else "Starting"
        reason = draft.status.history[-1].reason if draft.status.history else "Starting"
        why = f" after: {draft.status.last_failure.message}" if recovering and draft.status.last_failure and broken else ""
        message = draft.holding or f"generation {group.number} is {'being replaced' if broken else 'starting'}{why}"
    draft.status = replace(draft.status, state=state, reason=reason, message=message[: conditions.MESSAGE_LIMIT])
    if group is not None:
        if running and not broken:
            draft.condition(conditions.RUNNING, True, "Started", f"all processes of generation {group.number} are started")
        elif conditions.find(draft.status.conditions, conditions.RUNNING):
            draft.condition(conditions.RUNNING, False, reason, message)
        if memory.stepped:
            draft.condition(conditions.PROGRESSING, True, "Stepping", "steps are being reported")
        elif broken and conditions.find(draft.status.conditions, conditions.PROGRESSING):
            draft.condition(conditions.PROGRESSING, False, reason, message)
    startup = draft.status.startup
    since = draft.now.wall - draft.job.created
    if startup.pods_seconds is None and not draft.creates and len(draft.world.workers) >= draft.job.workers.replicas:
        startup = replace(startup, pods_seconds=since)
    if startup.joined_seconds is None and group is not None:
        startup = replace(startup, joined_seconds=since)
    if startup.running_seconds is None and running:
        startup = replace(startup, running_seconds=since)
    draft.status = replace(draft.status, startup=startup)


def _progress(draft: Draft) -> None:
    speaker = draft.first_speaker()
    if speaker is None:
        return
    first = draft.memory.counters.source == ("", "") and draft.observed.progress.step is None
    connected = [j.agent for j in draft.judgements if j.agent is not None and j.agent.connected]
    counted = draft.memory.counters.speaker([speaker, *connected]) or speaker
    draft.memory = replace(draft.memory, counters=draft.memory.counters.observe(counted, fresh=first))
    seen = speaker.progress
    if seen.step is None:
        return
    group = draft.memory.group
    throughput = [f"{rate(seen.tokens_per_second)} tok/s"] if seen.tokens_per_second else []
    throughput += [f"{rate(seen.samples_per_second)} samples/s"] if seen.samples_per_second and not throughput else []
    eta = None
    if seen.total_steps and seen.step_seconds and group is not None and seen.generation == group.number:
        eta = max(0, seen.total_steps - seen.step) * seen.step_seconds
    draft.status = replace(
        draft.status,
        progress=ProgressView(
            step=seen.step,
            total_steps=seen.total_steps,
            percent=f"{100 * seen.step / seen.total_steps:.0f}%" if seen.total_steps else "",
            loss=loss_text(seen.loss),
            samples_per_second=rate(seen.samples_per_second),
            tokens_per_second=rate(seen.tokens_per_second),
            throughput=throughput[0] if throughput else "",
            eta=duration(eta) if eta is not None else "",
            update_time=MicroTime(draft.now.wall),
        ),
    )
    if seen.checkpoint_step is not None and (seen.checkpoint_step, seen.checkpoint_path) != (
        draft.observed.checkpoint.step,
        draft.observed.checkpoint.path,
    ):
        view = CheckpointView(seen.checkpoint_step, seen.checkpoint_path, Time(draft.now.wall))
        draft.status = replace(draft.status, checkpoint=view)


def _first_step(draft: Draft) -> None:
    """Notes the first step of the current generation: recovery is over, and what is computed again is known."""
    memory, group, speaker = draft.memory, draft.memory.group, draft.first_speaker()
    if group is None or speaker is None or memory.stepped:
        return
    seen = speaker.progress
    if seen.generation != group.number or seen.first_step is None:
        return
    at = draft.now.mono
    if seen.first_step_time is not None:
        at -= max(0.0, min(draft.now.wall - seen.first_step_time, draft.now.mono - memory.formed))
    account = memory.account
    if memory.broken_since is not None and memory.reason != "Adopted":
        account = account.recovered(at - memory.broken_since)
        again = max(0, (memory.top_step or 0) - seen.first_step + 1)
        samples = round(again * seen.samples_total / seen.steps_total) if seen.steps_total else 0
        account = account.recomputed(again, samples)
        about = (
            f"generation {group.number} stepped {at - memory.broken_since:.2f} s after the interruption; {again} steps are computed again"
        )
        draft.event("Normal", "Recovered", about)
    if draft.status.startup.first_step_seconds is None:
        since = draft.now.wall - draft.job.created
        startup: Startup = replace(draft.status.startup, first_step_seconds=since - (draft.now.mono - at))
        draft.status = replace(draft.status, startup=startup)
    first = memory.first_step if memory.first_step is not None else at
    draft.memory = replace(memory, account=account, stepped=True, broken_since=None, first_step=first)


def _account(draft: Draft, terminal: bool) -> None:
    memory = draft.memory
    group = memory.group
    pods = conditions.find(draft.status.conditions, conditions.PODS_READY)
    if terminal:
        category = ""
    elif group is None:
        category = goodput.WAITING if pods is None or not pods.status else goodput.STARTING
    elif memory.broken_since is not None or any(j.bad for j in draft.judgements):
        category = goodput.RECOVERING
    elif memory.stepped or (conditions.is_true(draft.status.conditions, conditions.RUNNING) and memory.top_step is not None):
        speaker = draft.first_speaker()
        step = speaker.progress.step if speaker else None
        behind = max(0, (memory.top_step or 0) - step) if step is not None else 0
        category = goodput.RECOMPUTING if behind else goodput.PRODUCTIVE
        if behind and speaker is not None:
            draft.wait(max(0.1, behind * (speaker.progress.step_seconds or 1.0)))  # the seconds after that are productive again
    elif conditions.is_true(draft.status.conditions, conditions.RUNNING):
        # A script that reports nothing cannot be looked into: its running time counts as productive.
        reports = any(a.progress.reported for a in draft.world.agents)
        category = goodput.STARTING if reports else goodput.PRODUCTIVE
    else:
        category = goodput.STARTING
    draft.memory = replace(memory, account=memory.account.advance(category, draft.now.mono))
    draft.status = replace(draft.status, goodput=draft.memory.account.view())


def due(draft: Draft) -> tuple[Status | None, list[float]]:
    """The status to write now, if any, and the seconds after which to look again because a write is being put off."""
    status, observed, now = draft.status, draft.observed, draft.now.mono
    if draft.world.job.status and significant(status) == significant(observed):
        waits: list[float] = []
        since_write = now - draft.memory.written if draft.memory.written else COUNTS_SECONDS
        if status.workers != observed.workers:
            if since_write >= COUNTS_SECONDS:
                return status, []
            waits.append(COUNTS_SECONDS - since_write)
        if draft.memory.first_step is not None and draft.memory.ended is None:
            schedule, written = PROGRESS_SCHEDULE, draft.memory.progress_writes
            since = now - draft.memory.first_step
            left = schedule[written] - since if written < len(schedule) else PROGRESS_SECONDS - since_write
            if left <= 0:
                passed = sum(1 for moment in schedule if moment <= since)
                draft.memory = replace(draft.memory, progress_writes=max(passed, written + 1 if written < len(schedule) else written))
                return status, []
            waits.append(left)
        return None, waits
    waits = [0.01] if status.state in ("Complete", "Failed") and draft.memory.ended is None else []
    return status, waits


def significant(status: Status) -> Status:
    """The part of a status whose change is written at once."""
    steady = tuple(replace(c, message="", last_transition=0.0) if c.type == conditions.PODS_READY else c for c in status.conditions)
    return replace(
        status,
        message="",
        workers=WorkerCounts(desired=status.workers.desired),
        progress=ProgressView(),
        checkpoint=CheckpointView(),
        startup=Startup(),
        goodput=replace(status.goodput, ratio="", productive_seconds=0.0, lost_seconds={}, mean_recovery_seconds=None),
        conditions=tuple(replace(c, message="", last_transition=0.0) for c in steady),
    )


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
    if value is None or not math.isfinite(value):
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
