"""Who is in the current generation, and how each of them is doing: adoption by a new leader, and the verdict on every member."""

from dataclasses import replace

from lepton_operator import evidence, generation
from lepton_operator.draft import Draft
from lepton_operator.evidence import Judgement, Verdict
from lepton_operator.worker import Phase
from lepton_trainer.protocol import messages

START_SECONDS = 120.0
"""A member that has not started its processes so long after its generation was published is replaced."""


def adopt(draft: Draft) -> None:
    """A leader without a memory of the current generation rebuilds it from the agents' reports, or decides to replace it."""
    recorded = draft.observed.rendezvous
    if draft.memory.group is not None or recorded.generation == 0:
        return
    done = [w for w in draft.world.workers if w.phase is Phase.SUCCEEDED and not w.deleting]
    found = generation.adopt(recorded.generation, recorded.size, recorded.digest, draft.world.agents, done)
    if found is not None and generation.started(found, draft.world.agents, {w.uid for w in done}):
        draft.remember(group=found, formed=draft.now.mono, reason="Adopted")


def judge(draft: Draft) -> None:
    """One judgement for each member, and since when those that are lost are missed."""
    group = draft.memory.group
    if group is None:
        return
    facts = evidence.Facts(draft.by_uid, draft.boots, draft.world.blind, draft.world.leading_since)
    judgements = evidence.judge(group, facts, draft.now)
    overdue = draft.now.mono - draft.memory.formed > START_SECONDS
    draft.judgements = tuple(_overdue(j, group.number) if overdue else j for j in judgements)
    _miss(draft)
    if draft.memory.booked == group.number and not draft.broken():
        draft.remember(booked=0, broken_since=None)  # whoever was missing came back in time
    if any(j.verdict is Verdict.SUSPECTED for j in draft.judgements):
        draft.probe = True
        draft.wait(evidence.POLL_SECONDS)
    if any(j.verdict is Verdict.UNKNOWN for j in draft.judgements):
        draft.wait(1.0)


def all_succeeded(draft: Draft) -> bool:
    return bool(draft.judgements) and all(j.verdict is Verdict.SUCCEEDED for j in draft.judgements)


def _miss(draft: Draft) -> None:
    missed, now = draft.memory.lost_at, draft.now.mono
    lost = {j.member.uid: missed.get(j.member.uid, now) for j in draft.judgements if j.verdict is Verdict.LOST}
    kept = {uid: at for uid, at in missed.items() if (w := draft.by_uid.get(uid)) is not None and not draft.speaker(w)}
    draft.remember(lost_at={**kept, **lost})


def _overdue(j: Judgement, number: int) -> Judgement:
    if j.verdict is not Verdict.ALIVE or j.agent is None:
        return j
    if j.agent.state.generation == number and j.agent.state.phase == messages.RUNNING:
        return j
    return replace(j, verdict=Verdict.LOST, reason="StartTimedOut", message="its agent did not start the generation", costs=True)
