"""What the ranks themselves want the user to read: reasons that are known here become events, and one of them a condition."""

from lepton_operator import conditions
from lepton_operator.decision.draft import Draft

KINDS = {
    "CheckpointFailed": "Warning",
    "CheckpointDamaged": "Warning",
    "CheckpointsSavedAgain": "Normal",
    "NoCheckpoints": "Warning",
    "Resumed": "Normal",
    "DataCleaned": "Normal",
    "ModelExported": "Normal",
    "OptimisationRejected": "Normal",
    "ExportFailed": "Warning",
}
"""A script may report any reason; others than these are nobody's."""
SAVING = {"CheckpointFailed": False, "CheckpointsSavedAgain": True}
"""What they say about the condition Checkpointing."""


def tell(draft: Draft) -> None:
    """Each new notice of each worker, once; a new leader may tell the last ones again."""
    noticed = dict(draft.memory.noticed)
    for agent in draft.world.agents:
        for notice in agent.progress.notices:
            if (notice.generation, notice.number) <= noticed.get(agent.uid, (0, 0)) or notice.reason not in KINDS:
                continue
            noticed[agent.uid] = (notice.generation, notice.number)
            draft.event(KINDS[notice.reason], notice.reason, notice.message)
            if notice.reason in SAVING:
                draft.condition(conditions.CHECKPOINTING, SAVING[notice.reason], notice.reason, notice.message)
    here = {agent.uid for agent in draft.world.agents}
    if noticed != draft.memory.noticed or noticed.keys() - here:
        draft.remember(noticed={uid: told for uid, told in noticed.items() if uid in here})
