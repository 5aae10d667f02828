"""Who is in the current generation, and how each of them is doing: adoption by a new leader, and the verdict on every member."""

import math
from dataclasses import replace

from lepton_operator.decision import evidence, generation
from lepton_operator.decision.draft import REPLACE_SECONDS, Draft
from lepton_operator.decision.evidence import Judgement, Verdict
from lepton_operator.worker import Phase, Worker
from lepton_trainer.protocol import messages, result
from lepton_trainer.protocol.frames import ProtocolError

START_SECONDS = 120.0
"""The member that holds up a start for so long after its generation was published is replaced."""
CLOCKS_APART_SECONDS = 2.0
"""Times of a node and of the operator may differ so much (and a pod's are in whole seconds)."""


def adopt(draft: Draft) -> None:
    """A leader without a memory of the current generation rebuilds it from the agents' reports, or decides to replace it."""
    recorded = draft.observed.rendezvous
    if draft.memory.group is not None or recorded.generation == 0:
        return
    gone = [w for w in draft.world.workers if _ended_in(draft, w, recorded.generation)]
    found = generation.adopt(recorded.generation, recorded.size, recorded.digest, draft.world.agents, gone, draft.job.workers.procs)
    if found is not None and generation.started(found, draft.world.agents, {w.uid for w in gone}):
        draft.remember(group=found, formed=draft.now.mono, reason="Adopted")


def generation_of(worker: Worker) -> int:
    """The generation that its agent was in when it ended, by the result that it left behind; 0: none, or unknown."""
    try:
        return result.load(worker.result).generation if worker.result else 0
    except ProtocolError:
        return 0


def judge(draft: Draft) -> None:
    """One judgement for each member, and since when those that are lost are missed."""
    group, memory, now, world = draft.memory.group, draft.memory, draft.now, draft.world
    if group is None:
        return
    facts = evidence.Facts(
        draft.by_uid, draft.boots, world.blind, world.leading_since, world.listening_since, world.settled, outcomes=memory.outcomes
    )
    judgements = evidence.judge(group, facts, now)
    draft.judgements = _overdue(draft, judgements, group.number)
    ended = {j.member.uid: j.verdict for j in draft.judgements if j.verdict in (Verdict.SUCCEEDED, Verdict.STOPPED)}
    joined = (memory.joined | draft.member_uids()) & draft.by_uid.keys()
    seen = {**memory.pods, **draft.by_uid}
    pods = {uid: seen[uid] for uid in draft.member_uids() if uid in seen}
    draft.remember(outcomes={**memory.outcomes, **ended}, joined=joined, pods=pods)
    _miss(draft)
    _note_interruption(draft, group.number)
    if any(j.verdict is Verdict.SUSPECTED for j in draft.judgements):
        draft.probe = True
    if (seconds := evidence.next_doubt(draft.judgements, now)) is not None:
        draft.wait(seconds)


def all_succeeded(draft: Draft) -> bool:
    return bool(draft.judgements) and all(j.verdict is Verdict.SUCCEEDED for j in draft.judgements)


def _ended_in(draft: Draft, worker: Worker, number: int) -> bool:
    """Whether this worker has ended as a member of generation `number`, as far as a new leader can tell."""
    if worker.phase not in (Phase.SUCCEEDED, Phase.FAILED) or worker.deleting:
        return False
    if worker.result:
        return generation_of(worker) == number
    if any(other.index == worker.index and other.created > worker.created for other in draft.world.workers):
        return False  # replaced already
    explained = {uid for incident in draft.observed.restarts.recent if incident.generation != number for uid in incident.workers}
    formed = draft.observed.history[-1].time if draft.observed.history else 0.0
    return worker.uid not in explained and (not worker.ended or worker.ended > formed - CLOCKS_APART_SECONDS)


def _miss(draft: Draft) -> None:
    """Keeps since when the agent of a living worker is lost, until it is heard again."""
    missed, now = draft.memory.lost_at, draft.now.mono
    for j in draft.judgements:
        if j.verdict is Verdict.LOST and j.reason == "StartTimedOut":
            missed = {**missed, j.member.uid: -math.inf}
        elif j.verdict is Verdict.LOST and j.reason != "AgentRestarted" and j.member.uid not in missed:
            missed = {**missed, j.member.uid: now}
    draft.remember(lost_at={uid: at for uid, at in missed.items() if _still_missed(draft, uid, at)})
    waits = [at + REPLACE_SECONDS - now for at in draft.memory.lost_at.values() if at + REPLACE_SECONDS > now]
    if waits:
        draft.wait(min(waits))


def _still_missed(draft: Draft, uid: str, at: float) -> bool:
    worker = draft.by_uid.get(uid)
    if worker is None or worker.phase not in (Phase.PENDING, Phase.RUNNING):
        return False
    speaker = draft.speaker(worker)
    return speaker is None or speaker.heard <= at or at == -math.inf


def _note_interruption(draft: Draft, number: int) -> None:
    memory, now = draft.memory, draft.now.mono
    if draft.broken():
        first = _first_evidence(draft)
        if memory.evident_since is None:
            draft.remember(evident_since=now, broken_since=first if memory.broken_since is None else memory.broken_since)
        return
    if memory.evident_since is not None:  # whoever was missing came back in time
        draft.remember(evident_since=None, broken_since=None if memory.stepped else memory.broken_since)
    if draft.observed.restarts.generation == number:
        draft.status = replace(draft.status, restarts=replace(draft.status.restarts, generation=0))
    if memory.broken_since is None and any(j.verdict is Verdict.STOPPED for j in draft.judgements):
        draft.remember(broken_since=now)  # no step is made from here on


def _first_evidence(draft: Draft) -> float:
    """When the interruption began (mono): the exit, or the end of the connection, that was first."""
    now, moments = draft.now, [draft.now.mono]
    for j in draft.judgements:
        if j.bad and j.agent is not None:
            moments += [j.agent.since] if not j.agent.connected else []
            moments += [now.mono - max(0.0, now.wall - e.time) for e in j.agent.state.exits if e.time]
    return max(draft.memory.formed, min(moments))


def _overdue(draft: Draft, judgements: tuple[Judgement, ...], number: int) -> tuple[Judgement, ...]:
    """Of a start that takes too long, the members that hold it up are lost: those not prepared, else the master, else those not started."""
    behind = [j for j in judgements if j.verdict is Verdict.ALIVE and _stage(j, number) < 2]
    if not behind or any(j.bad or j.verdict is Verdict.LEAVING for j in judgements):
        return judgements  # those behind wait for the one that is gone
    left = draft.memory.formed + START_SECONDS - draft.now.mono
    if left > 0:
        draft.wait(left)
        return judgements
    worst = min(_stage(j, number) for j in behind)
    guilty = [j for j in behind if _stage(j, number) == worst]
    if worst == 1 and (master := next((j for j in guilty if j.member == judgements[0].member and not _port(j)), None)):
        guilty = [master]
    message = f"it did not start generation {number} in {START_SECONDS:.0f} s"
    said = {j.member.uid: f" ({j.agent.state.refusal})" for j in guilty if j.agent is not None and j.agent.state.refusal}
    return tuple(
        replace(j, verdict=Verdict.LOST, reason="StartTimedOut", message=message + said.get(j.member.uid, ""), costs=True)
        if j in guilty
        else j
        for j in judgements
    )


def _stage(j: Judgement, number: int) -> int:
    """0: not prepared, 1: prepared, 2: started."""
    if j.agent is None or j.agent.state.generation != number or j.agent.state.phase == messages.IDLE:
        return 0
    return 1 if j.agent.state.phase == messages.PREPARED else 2


def _port(j: Judgement) -> int:
    return j.agent.state.store_port if j.agent is not None else 0
