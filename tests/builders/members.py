"""Small builders for what plans decide from: one generation, its pods and its agents, all well unless said otherwise."""

from dataclasses import replace
from typing import Any

from lepton_operator.decision import evidence, generation
from lepton_operator.decision.evidence import Facts, Judgement
from lepton_operator.decision.generation import Generation
from lepton_operator.worker import Agent, Clock, Phase, Worker
from lepton_trainer.protocol.messages import RUNNING, ProcessExit, Progress, State

NOW = Clock(wall=1_700_000_000.0, mono=1_000.0)
STEP_SECONDS = 0.1


def worker(index: int, **changes: Any) -> Worker:
    """The pod of an index: running, on a ready node."""
    base = Worker(f"digits-{index}-abcde", f"pod-{index}", index, Phase.RUNNING, "1", NOW.wall - 600, node="n1", started=NOW.wall - 590)
    return replace(base, **changes)


def agent(index: int, *, number: int = 1, phase: str = RUNNING, ago: float = 0.05, **changes: Any) -> Agent:
    """The agent of an index: connected, training in generation `number`, heard and stepped `ago` seconds ago."""
    state = State(seq=1, phase=phase, generation=number, highest=number, group_rank=index)
    state = replace(state, **{name: changes.pop(name) for name in ("exits", "leaving", "can_stop", "refusal") if name in changes})
    progress = Progress(generation=number, step=10, first_step=1, step_seconds=STEP_SECONDS, reported=True)
    base = Agent(
        index,
        f"pod-{index}",
        f"boot-{index}",
        f"10.0.0.{index}",
        1,
        state,
        progress,
        True,
        NOW.mono - 100,
        NOW.mono - 100,
        NOW.mono - ago,
        NOW.mono - ago,
    )
    return replace(base, **changes)


def dropped(index: int, seconds: float, **changes: Any) -> Agent:
    """Its connection was closed so many seconds ago."""
    return agent(index, connected=False, since=NOW.mono - seconds, **changes)


def failed_exit(rank: int = 0, **changes: Any) -> ProcessExit:
    return replace(ProcessExit(rank, 0, exit_code=1, error="ValueError: bad (train.py:7)"), **changes)


def group(size: int = 3, number: int = 1) -> Generation:
    return generation.form(number, [agent(index) for index in range(size)])


class Team:
    """A generation of three, with changes to the pods and agents of single members. `without_*` lists indices that are gone."""

    def __init__(
        self,
        workers: dict[int, Worker] | None = None,
        agents: dict[int, Agent] | None = None,
        extra_agents: tuple[Agent, ...] = (),
        no_pod: tuple[int, ...] = (),
        no_agent: tuple[int, ...] = (),
        **facts: Any,
    ) -> None:
        pods = {i: (workers or {}).get(i, worker(i)) for i in range(3) if i not in no_pod}
        speaking = {i: (agents or {}).get(i, agent(i)) for i in range(3) if i not in no_agent}
        boots: dict[str, list[Agent]] = {}
        for one in [*speaking.values(), *extra_agents]:
            boots.setdefault(one.uid, []).append(one)
        self.facts = Facts({w.uid: w for w in pods.values()}, boots, **facts)

    def judge(self) -> tuple[Judgement, ...]:
        return evidence.judge(group(), self.facts, NOW)

    def verdict(self, index: int) -> evidence.Verdict:
        return self.judge()[index].verdict
