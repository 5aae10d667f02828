"""The workers that should exist: one living worker for each wanted index, none beyond."""

from lepton_operator.decision import ending, evaluation
from lepton_operator.decision.draft import Draft
from lepton_operator.decision.evidence import Verdict
from lepton_operator.decision.incidents import create_wait
from lepton_operator.decision.world import Delete
from lepton_operator.worker import Phase
from lepton_trainer.protocol import messages

REJECTION_SECONDS = 10.0
"""After a refused creation (quota, admission) the next try waits so long."""
CREATED_SECONDS = 1.0
"""After creations things are looked at again, whatever has become of them."""


def fill(draft: Draft) -> None:
    """Creates what is missing. Members that succeeded need no replacement, unless their generation broke: then it is made anew by all."""
    done = {j.member.worker for j in draft.judgements if j.verdict is Verdict.SUCCEEDED and _goes_on(draft)}
    missing = [i for i in range(draft.job.workers.replicas) if i not in done and not draft.living(i)]
    if not missing:
        return
    delay = create_wait(draft)
    if draft.world.rejection is not None:
        delay = max(delay, draft.world.rejection.mono + REJECTION_SECONDS - draft.now.mono)
    if delay > 0:
        draft.wait(delay)
        return
    draft.creates += missing
    draft.wait(CREATED_SECONDS)


def _goes_on(draft: Draft) -> bool:
    """The current generation is not to be made anew by all."""
    return not draft.broken() and not evaluation.between(draft)


def trim(draft: Draft) -> None:
    """Deletes what is too many, given up or scaled away; a member that is scaled away goes once a generation without it is made."""
    members, replicas = draft.member_uids(), draft.job.workers.replicas
    for index in range(replicas):
        living = draft.living(index)
        if len(living) > 1:
            keep = min(living, key=lambda w: (w.uid not in members, draft.speaker(w) is None, w.created, w.name))
            draft.deletes += [Delete(w, "one worker too many of this index") for w in living if w is not keep]
    for worker in draft.world.workers:
        if worker.phase not in (Phase.PENDING, Phase.RUNNING) or worker.deleting:
            continue
        if draft.given_up(worker):
            draft.deletes.append(Delete(worker, "its agent was lost", 0.0 if not worker.node_ready else None))
        elif worker.index >= replicas and worker.uid not in members:
            draft.shutdown[worker.uid] = messages.REMOVED
            draft.deletes.append(Delete(worker, "scaled down"))
    _trim_lingering(draft)


def _trim_lingering(draft: Draft) -> None:
    """Pods of ended workers whose sidecar runs on. One that succeeded in a generation that goes on stays: a new leader counts by it."""
    if draft.returning:
        return
    needed = {j.member.uid for j in draft.judgements if j.verdict is Verdict.SUCCEEDED and _goes_on(draft)}
    ending.end_lingering(draft, [w for w in draft.world.workers if w.lingering and w.uid not in needed])
