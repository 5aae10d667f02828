"""What the operator knows of a job's agents, folded from what the coordinator process tells. Pure: the times are in the messages."""

from dataclasses import fields, replace

from lepton_operator.coordinator import messages
from lepton_operator.worker import Agent
from lepton_trainer.protocol.messages import FAILED, Progress, State

Key = tuple[str, str]
"""(worker uid, boot)"""


TOLD = tuple(field.name for field in fields(State) if field.name != "seq")


class JobFacts:
    """The agents of one job. The methods return True when something that decisions depend on has changed."""

    __slots__ = ("_agents", "_failures")

    def __init__(self) -> None:
        self._agents: dict[Key, Agent] = {}
        self._failures = 0

    def agents(self) -> list[Agent]:
        return list(self._agents.values())

    def joined(self, message: messages.Joined) -> bool:
        key = (message.uid, message.boot)
        known = self._agents.get(key)
        agent = Agent(
            worker=message.worker,
            uid=message.uid,
            boot=message.boot,
            host=message.host,
            procs=message.procs,
            state=message.state,
            progress=message.progress,
            connected=True,
            since=message.at,
            joined=known.joined if known else message.at,
            heard=message.at,
            stepped=_stepped(known, message.progress, message.at),
            failed_order=self._failed_order(known, message.state),
            metrics_port=message.metrics_port,
        )
        self._agents.pop(key, None)  # the newest join comes last: of two boots of a worker the later is the living one
        self._agents[key] = agent
        return True

    def dropped(self, message: messages.Dropped) -> bool:
        agent = self._agents.get((message.uid, message.boot))
        if agent is None or not agent.connected:
            return False
        self._agents[(message.uid, message.boot)] = replace(agent, connected=False, since=message.at)
        return True

    def all_dropped(self, at: float) -> None:
        """The coordinator process died, and every connection with it."""
        for key, agent in self._agents.items():
            if agent.connected:
                self._agents[key] = replace(agent, connected=False, since=at)

    def reported(self, message: messages.Reported) -> bool:
        key = (message.uid, message.boot)
        agent = self._agents.get(key)
        if agent is None:
            return False
        order = self._failed_order(agent, message.state)
        self._agents[key] = replace(agent, state=message.state, heard=message.at, failed_order=order)
        return any(getattr(message.state, name) != getattr(agent.state, name) for name in TOLD)

    def progressed(self, message: messages.Progressed) -> bool:
        """The first step of a generation and a new notice are news; all other progress is stored silently."""
        key = (message.uid, message.boot)
        agent = self._agents.get(key)
        if agent is None:
            return False
        stepped = _stepped(agent, message.progress, message.at)
        self._agents[key] = replace(agent, progress=message.progress, heard=message.at, stepped=stepped)
        before, after = agent.progress, message.progress
        stepped_first = after.first_step is not None and (after.generation, after.first_step) != (before.generation, before.first_step)
        return stepped_first or after.notices != before.notices

    def forget(self, key: Key) -> bool:
        return self._agents.pop(key, None) is not None

    def _failed_order(self, known: Agent | None, state: State) -> int:
        if state.phase != FAILED:
            return known.failed_order if known else 0
        if known is not None and known.state.phase == FAILED and known.state.generation == state.generation:
            return known.failed_order
        self._failures += 1
        return self._failures


def _stepped(known: Agent | None, progress: Progress, at: float) -> float:
    """When the step count last moved: by the agent's own word where it gives an age, else when the news of it came."""
    if progress.step is None:
        return known.stepped if known else 0.0
    if progress.step_age is not None:
        return at - progress.step_age
    if known is not None and (known.progress.generation, known.progress.step) == (progress.generation, progress.step):
        return known.stepped
    return at
