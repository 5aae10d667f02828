"""Starting the ranks of a generation and opening its store: warm where it can be, cold where not, and why.

What a start that failed means for the generation, the supervisor decides; the cause lies in `Group.exits`.
"""

from typing import Callable, Dict, List, Mapping, Optional

from lepton_trainer.agent import group as g
from lepton_trainer.agent.group import Group, Rank
from lepton_trainer.agent.logs import Output
from lepton_trainer.agent.processes import Ended
from lepton_trainer.agent.settings import Settings
from lepton_trainer.agent.telemetry import LogMatcher
from lepton_trainer.agent.warm.client import Cold, WarmParent, warmable


class Starter:
    """`cold_start`: why the last start was not warm; `counts`: ranks started, by kind; `warm`: None where no start can be warm."""

    def __init__(
        self,
        settings: Settings,
        base: Mapping[str, str],
        output: Output,
        on_ended: Callable[[List[Ended]], None],
        say: Callable[[str], None],
    ) -> None:
        self.cold_start = ""
        self.counts: Dict[str, int] = {"warm": 0, "cold": 0}
        self._settings = settings
        self._output = output
        self._not_warmable = warmable(settings)
        self.warm = None if self._not_warmable else WarmParent(settings, base, on_ended, say)

    @property
    def uses_agent_store(self) -> bool:
        """The same on every worker of a job, because it follows from the command and the environment alone."""
        return self.warm is not None

    async def open_store(self) -> int:
        """The port of a store that is open, or one that rank 0 can open. Raises `Cold`: no rank would open one, and there is none."""
        if self.warm is None:
            return g.free_port()
        return await self.warm.open_store() or g.free_port()

    async def start(self, group: Group, matcher: Optional[LogMatcher]) -> None:
        """Starts the ranks one after the other, until one has failed."""
        warm = await self._warm_or_reason()
        for rank in group.ranks:
            on_line = matcher.line if matcher is not None and rank.local_rank == 0 else None
            try:
                warm = await self._start(group, rank, warm, on_line)
            except OSError as error:
                group.exits.append(g.cannot_start(self._settings, rank.rank, rank.local_rank, error))
            self.counts["warm" if warm is not None else "cold"] += 1
            if group.exits:
                return

    async def _start(
        self, group: Group, rank: Rank, warm: Optional[WarmParent], on_line: Optional[Callable[[str], None]]
    ) -> Optional[WarmParent]:
        """Starts `rank`; returns the parent for the next one. Raises OSError when the command cannot be executed."""
        if warm is not None:
            try:
                await group.start_warm(rank, warm, self._output, on_line)
                return warm
            except Cold as cold:
                self.cold_start = str(cold)
        group.start_cold(rank, self._output, on_line)
        return None

    async def _warm_or_reason(self) -> Optional[WarmParent]:
        if self.warm is None:
            self.cold_start = self._not_warmable
            return None
        try:
            await self.warm.wait_ready()
        except Cold as cold:
            self.cold_start = str(cold)
            return None
        self.cold_start = ""
        return self.warm
