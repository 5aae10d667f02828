"""When a new generation is due, whether the running one may be ended for it, and its making."""

from collections.abc import Sequence
from dataclasses import replace

from lepton_operator.decision import evaluation, evidence, generation
from lepton_operator.decision.draft import Draft
from lepton_operator.decision.evidence import Verdict
from lepton_operator.decision.incidents import cause_pending, regroup_wait
from lepton_operator.status import HISTORY_LIMIT, HistoryEntry, MicroTime, Rendezvous
from lepton_operator.worker import Agent, Phase
from lepton_trainer.protocol import messages

FIRST_GROUP_SECONDS = 30.0
"""The first generation waits so long for all replicas, once `minReplicas` have joined; then it forms without the rest."""
GROW_SECONDS = 1.0
"""A worker that has joined a running group waits so long for others that are about to join, too."""
WARMING_SECONDS = 60.0
"""... and so long, at most, until its warm parent has imported what the script needs: the group would wait for it."""
CHECKPOINT_WAIT_SECONDS = 60.0
"""A script that cannot stop but reports checkpoints is interrupted right after one, or after so long."""
STOP_SECONDS = 30.0
"""A coordinated stop takes at most so long; the generation is then ended without it."""
LEAVING_STOP_SECONDS = 25.0
"""... and so long when a member is leaving: it ends by itself soon."""


def regroup(draft: Draft) -> None:
    """Forms the next generation when one is due and may be."""
    why = _due(draft)
    if not why:
        return
    members = _ready(draft)
    if len(members) < draft.job.workers.min_replicas:
        draft.holding = f"{len(members)} of at least {draft.job.workers.min_replicas} workers have joined"
        return
    if (delay := regroup_wait(draft)) > 0:
        draft.holding = f"waiting {delay:.0f} s after repeated failures"
        draft.wait(delay)
        return
    _form(draft, members, why)


def _ready(draft: Draft) -> list[Agent]:
    """Who can be a member; newcomers that still import are left for later, where the group can go on without them."""
    found, group = draft.candidates(), draft.memory.group
    if group is None:
        return found
    members = {(m.uid, m.boot) for m in group.members}
    warm = [a for a in found if not a.state.warming or (a.uid, a.boot) in members]
    return warm if len(warm) >= draft.job.workers.min_replicas else found


def _due(draft: Draft) -> str:
    """Why a new generation is due now, in a CamelCase word; empty when none is, or not yet."""
    group = draft.memory.group
    if group is None:
        return _first_due(draft)
    if evaluation.between(draft):
        return evaluation.NEW_ROUND
    if draft.broken():
        return _broken_due(draft)
    verdicts = {j.verdict for j in draft.judgements}
    if Verdict.SUCCEEDED in verdicts and verdicts & {Verdict.ALIVE, Verdict.LEAVING, Verdict.SUSPECTED, Verdict.UNKNOWN}:
        return ""  # it is about to end: whoever still runs finishes, or breaks it
    members = {(m.uid, m.boot) for m in group.members}
    joined = [a for a in draft.candidates() if (a.uid, a.boot) not in members]
    leaving = any(j.verdict is Verdict.LEAVING or (j.verdict is Verdict.STOPPED and j.reason) for j in draft.judgements)
    if leaving:
        why = "WorkerLeaving"
    elif any(m.worker >= draft.job.workers.replicas for m in group.members):
        why = "ScaledDown"
    elif joined:
        why = "Grown"
    elif Verdict.STOPPED in verdicts:
        why = "Stopped"
    else:
        if draft.memory.stop_since is not None or draft.memory.grow_checkpoint is not None:
            draft.remember(stop_since=None, grow_checkpoint=None)
        return ""
    if why == "Grown" and not _may_grow(draft, joined):
        return ""
    return why if _stopped(draft, leaving=leaving) else ""


def _broken_due(draft: Draft) -> str:
    if cause_pending(draft):
        return ""
    since = draft.memory.evident_since
    soon = since is not None and draft.now.mono - since < evidence.UNKNOWN_STEP_SECONDS
    if soon and any(j.verdict is Verdict.SUSPECTED for j in draft.judgements):
        return ""
    return "WorkerLost" if any(j.verdict is Verdict.LOST for j in draft.judgements) else "ProcessFailed"


def _first_due(draft: Draft) -> str:
    """No generation is remembered: either there was none yet, or the one on record could not be adopted."""
    members, job = draft.candidates(), draft.job
    if draft.observed.rendezvous.generation:
        expected = [w for i in range(job.workers.replicas) for w in draft.living(i) if w.phase is Phase.RUNNING]
        missing = [w for w in expected if draft.speaker(w) is None]
        if missing and _still_returning(draft):
            draft.returning = True
            draft.wait(0.5)
            return ""
        return evaluation.NEW_ROUND if evaluation.between(draft) else "LeaderChanged"
    if len(members) >= job.workers.replicas:
        return "FirstGroup"
    if len(members) < job.workers.min_replicas:
        draft.remember(ready_since=None)
        return "FirstGroup"  # regroup() holds it and says how many are missing
    since = draft.memory.ready_since if draft.memory.ready_since is not None else draft.now.mono
    draft.remember(ready_since=since)
    left = since + FIRST_GROUP_SECONDS - draft.now.mono
    if left > 0:
        draft.holding = f"{len(members)} of {job.workers.replicas} workers have joined; going on without the rest in {left:.0f} s"
        draft.wait(left)
        return ""
    return "FirstGroup"


def _still_returning(draft: Draft) -> bool:
    """Agents have time to come back to a new leader; and as long as those that are back go on stepping, all of their group live."""
    recorded, world = draft.observed.rendezvous, draft.world
    if draft.memory.taken_over is not None:
        return True
    if draft.now.mono - max(world.leading_since, world.listening_since, world.settled) < evidence.RETURN_SECONDS:
        return True
    group = [a for a in world.agents if a.connected and (a.state.generation, a.state.digest) == (recorded.generation, recorded.digest)]
    return all(a.state.phase == messages.RUNNING for a in group) and evidence.steps_on(group, draft.now)


def _may_grow(draft: Draft, joined: Sequence[Agent]) -> bool:
    """Who joined has waited for others, and the script is at a good place where it can tell one."""
    youngest = max(a.joined for a in joined)
    if any(a.state.warming for a in joined) and draft.now.mono - youngest < WARMING_SECONDS:
        draft.wait(0.5)
        return False
    left = youngest + GROW_SECONDS - draft.now.mono
    if left > 0:
        draft.wait(left)
        return False
    speaker = draft.first_speaker()
    step = speaker.progress.checkpoint_step if speaker else None
    if step is None or _can_stop(draft):
        return True
    if draft.memory.grow_checkpoint is None:
        draft.remember(grow_checkpoint=step)
    left = youngest + CHECKPOINT_WAIT_SECONDS - draft.now.mono
    if draft.memory.grow_checkpoint == step and left > 0:
        draft.wait(min(left, 1.0))
        return False
    return True


def _can_stop(draft: Draft) -> bool:
    alive = [j.agent for j in draft.judgements if j.agent is not None and j.agent.connected]
    return bool(alive) and all(a.state.can_stop for a in alive)


def _stopped(draft: Draft, *, leaving: bool) -> bool:
    """True when the running generation may be ended now: it has stopped in good order, or cannot, or has had its time."""
    running = [j for j in draft.judgements if j.verdict in (Verdict.ALIVE, Verdict.LEAVING)]
    if not running:
        return True
    if not _can_stop(draft) and draft.memory.stop_since is None:
        return True
    since = draft.memory.stop_since if draft.memory.stop_since is not None else draft.now.mono
    draft.remember(stop_since=since)
    left = since + (LEAVING_STOP_SECONDS if leaving else STOP_SECONDS) - draft.now.mono
    if left > 0:
        draft.wait(min(left, 1.0))
        return False
    return True


def _form(draft: Draft, members: Sequence[Agent], why: str) -> None:
    new_round = evaluation.between(draft)
    number = generation.next_number(draft.observed.rendezvous.generation, draft.world.agents)
    formed = generation.form(number, members)
    entry = HistoryEntry(number, MicroTime(draft.now.wall), formed.size, why)
    draft.status = replace(
        draft.status,
        rendezvous=Rendezvous(number, formed.size, draft.by_uid[formed.master.uid].name, formed.digest),
        history=(*draft.status.history, entry)[-HISTORY_LIMIT:],
    )
    kept = len({m.uid for m in formed.members} & draft.member_uids())
    about = f"generation {number}: {formed.size} of {draft.job.workers.replicas} workers, world size {formed.world_size}, {kept} kept"
    draft.event("Normal", why, about)
    broken = draft.memory.broken_since
    if broken is None and draft.observed.rendezvous.generation and not new_round:
        broken = draft.now.mono
    draft.remember(
        group=formed,
        formed=draft.now.mono,
        reason=why,
        broken_since=broken,
        evident_since=None,
        outcomes={},
        pods={m.uid: draft.by_uid[m.uid] for m in formed.members},
        stepped=False,
        stop_since=None,
        grow_checkpoint=None,
        top_step=draft.top_step(),
    )
    draft.judgements = ()
