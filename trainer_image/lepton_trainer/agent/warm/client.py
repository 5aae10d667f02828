"""The agent's side of the warm parent."""

from typing import Callable, List, Mapping

from lepton_trainer.agent.processes import Ended
from lepton_trainer.agent.settings import Settings


class Cold(Exception):
    """This start cannot be warm; `args[0]` says why."""


def warmable(settings: Settings) -> str:
    """Why no start of this job can be warm; empty when it can."""
    return "LEPTON_WARM_START=0"


class WarmParent:
    pid = 0
    ready_time = 0.0

    def __init__(
        self, settings: Settings, base: Mapping[str, str], on_ended: Callable[[List[Ended]], None], say: Callable[[str], None]
    ) -> None:
        raise Cold("not yet")
