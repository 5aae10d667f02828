"""Every second is accounted for: measuring objects, fed with numbers and times, that know no clock of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from lepton_operator.status import GoodputView
from lepton_operator.worker import Agent

PRODUCTIVE = "productive"
WAITING = "waitingForPods"
STARTING = "starting"
RECOVERING = "recovering"
RECOMPUTING = "recomputing"
UNOBSERVED = "unobserved"  # no leader looked, and nothing tells what went on


@dataclass(frozen=True, slots=True)
class Account:
    """Seconds by what they were spent on. `advance` books the time since the last call on what went on *until now*."""

    seconds: dict[str, float] = field(default_factory=dict)
    current: str = ""
    at: float = 0.0  # mono
    recoveries: int = 0
    recovery_seconds: float = 0.0
    recomputed_steps: int = 0
    recomputed_samples: int = 0

    def advance(self, category: str, mono: float) -> "Account":
        seconds = self.seconds
        if self.current and mono > self.at:
            seconds = {**seconds, self.current: seconds.get(self.current, 0.0) + mono - self.at}
        return replace(self, seconds=seconds, current=category, at=mono)

    def add(self, category: str, seconds: float) -> "Account":
        """Seconds that passed while nobody kept the account."""
        return replace(self, seconds={**self.seconds, category: self.seconds.get(category, 0.0) + seconds})

    def recovered(self, seconds: float) -> "Account":
        """One interruption is over: from the first evidence to the first step of the generation that followed."""
        return replace(self, recoveries=self.recoveries + 1, recovery_seconds=self.recovery_seconds + seconds)

    def recomputed(self, steps: int, samples: int) -> "Account":
        return replace(self, recomputed_steps=self.recomputed_steps + steps, recomputed_samples=self.recomputed_samples + samples)

    def at_least(self, shown: "Account") -> "Account":
        """The account that another leader wrote down, with nothing in it below what this process has shown: counters never go back."""
        causes = self.seconds.keys() | shown.seconds.keys()
        return Account(
            seconds={cause: max(self.seconds.get(cause, 0.0), shown.seconds.get(cause, 0.0)) for cause in causes},
            recoveries=max(self.recoveries, shown.recoveries),
            recovery_seconds=max(self.recovery_seconds, shown.recovery_seconds),
            recomputed_steps=max(self.recomputed_steps, shown.recomputed_steps),
            recomputed_samples=max(self.recomputed_samples, shown.recomputed_samples),
        )

    def view(self) -> GoodputView:
        """As status shows it; the ratio is productive over all seconds since the job's first worker was asked for."""
        total = sum(self.seconds.values())
        productive = self.seconds.get(PRODUCTIVE, 0.0)
        return GoodputView(
            ratio=f"{productive / total:.3f}" if total > 0 else "",
            productive_seconds=productive,
            lost_seconds={cause: spent for cause, spent in sorted(self.seconds.items()) if cause != PRODUCTIVE},
            mean_recovery_seconds=self.recovery_seconds / self.recoveries if self.recoveries else None,
            recoveries=self.recoveries,
            recomputed_steps=self.recomputed_steps,
            recomputed_samples=self.recomputed_samples,
        )


def resume(view: GoodputView) -> Account:
    """The account of a job that another leader kept before."""
    seconds = dict(view.lost_seconds)
    if view.productive_seconds:
        seconds[PRODUCTIVE] = view.productive_seconds
    mean = view.mean_recovery_seconds or 0.0
    return Account(
        seconds=seconds,
        recoveries=view.recoveries,
        recovery_seconds=mean * view.recoveries,
        recomputed_steps=view.recomputed_steps,
        recomputed_samples=view.recomputed_samples,
    )


NOBODY, ELSEWHERE = ("", ""), ("", "elsewhere")
"""Sources of counters that are no agent's."""


@dataclass(frozen=True, slots=True)
class Counters:
    """A job's counters, summed over the agents that spoke for it one after the other (each as long as it is there)."""

    steps: int = 0
    samples: float = 0.0
    tokens: float = 0.0
    nonfinite: int = 0
    source: tuple[str, str] = NOBODY  # (uid, boot)
    seen: tuple[int, float, float, int] = (0, 0.0, 0.0, 0)

    def from_here(self) -> "Counters":
        """The same sums; what was reported while another process counted is not counted here, too."""
        return self if self.fresh else replace(self, source=ELSEWHERE, seen=(0, 0.0, 0.0, 0))

    @property
    def fresh(self) -> bool:
        """Whether nobody has been counted yet."""
        return self.source == NOBODY

    def speaker(self, agents: Sequence[Agent]) -> Agent | None:
        """Who of the connected `agents` is counted: the last one while it is there, for the next has missed or made some steps by then."""
        return next((a for a in agents if (a.uid, a.boot) == self.source), agents[0] if agents else None)

    def observe(self, agent: Agent, *, fresh: bool) -> "Counters":
        """Adds what `agent` counted since it was last looked at; `fresh`: it is the job's first speaker, so all that it has counts."""
        progress = agent.progress
        now = (progress.steps_total, progress.samples_total, progress.tokens_total, progress.nonfinite_total)
        source = (agent.uid, agent.boot)
        before = self.seen if source == self.source else ((0, 0.0, 0.0, 0) if fresh else now)
        return Counters(
            steps=self.steps + max(0, now[0] - before[0]),
            samples=self.samples + max(0.0, now[1] - before[1]),
            tokens=self.tokens + max(0.0, now[2] - before[2]),
            nonfinite=self.nonfinite + max(0, now[3] - before[3]),
            source=source,
            seen=now,
        )
