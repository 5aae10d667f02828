"""The workers that should exist: one living worker for each wanted index, none beyond."""

from lepton_operator.draft import REPLACE_SECONDS, Draft
from lepton_operator.evidence import Verdict
from lepton_operator.incidents import retry_wait
from lepton_operator.worker import Phase
from lepton_operator.world import Delete
from lepton_trainer.protocol import messages

REJECTION_SECONDS = 10.0
"""After a refused creation (quota, admission) the next try waits so long."""


def level(draft: Draft) -> None:
    """Creates what is missing, deletes what is too many, given up or scaled away."""
    _fill_indices(draft)
    _remove_surplus(draft)
    if any(uid in draft.by_uid for uid in draft.memory.lost_at):
        draft.wait(REPLACE_SECONDS)


def _fill_indices(draft: Draft) -> None:
    done = {j.member.worker for j in draft.judgements if j.verdict is Verdict.SUCCEEDED}
    members, rejection = draft.member_uids(), draft.world.rejection
    blocked = rejection is not None and draft.now.mono - rejection.mono < REJECTION_SECONDS
    delay = retry_wait(draft)
    for index in range(draft.job.workers.replicas):
        living = draft.living(index)
        if len(living) > 1:
            keep = min(living, key=lambda w: (w.uid not in members, draft.speaker(w) is None, w.created, w.name))
            draft.deletes += [Delete(w, "one worker too many of this index") for w in living if w is not keep]
        elif not living and index not in done:
            if blocked or delay > 0:
                draft.wait(delay or REJECTION_SECONDS)
            else:
                draft.creates.append(index)


def _remove_surplus(draft: Draft) -> None:
    members = draft.member_uids()
    for worker in draft.world.workers:
        if worker.phase not in (Phase.PENDING, Phase.RUNNING) or worker.deleting:
            continue
        if draft.given_up(worker):
            draft.deletes.append(Delete(worker, "its agent was lost", 0.0 if not worker.node_ready else None))
        elif worker.index >= draft.job.workers.replicas and worker.uid not in members:
            draft.shutdown[worker.uid] = messages.REMOVED
            draft.deletes.append(Delete(worker, "scaled down"))
