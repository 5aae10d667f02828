"""Evidence, not silence: what is known of one member of a generation, judged by the table of docs/architecture.md.

A member is lost when somebody saw it go (the kubelet, the agent itself, a peer's failed process together with a closed connection),
not when it is quiet: a group that goes on stepping proves all its members alive. Everything here is a function of facts and the time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from lepton_operator.decision.generation import Generation
from lepton_operator.worker import Agent, Clock, Member, Phase, Worker
from lepton_trainer.protocol import messages

PEER_FAILED_SECONDS = 0.15
"""A closed connection and a peer's failed process: lost after so long without a reconnection (a live agent tries within 0.05)."""
SUSPECT_SECONDS = 0.25
"""A closed connection alone: the group's steps are looked at from here on."""
UNKNOWN_STEP_SECONDS = 2.0
"""The step time assumed where none is known."""
SILENT_SECONDS = 6.0
"""An open connection without a word for so long is silent: where the steps have stopped, too, it is probed."""
SILENT_LOST_SECONDS = 12.0
"""... and lost after so long: probes were not answered."""
SILENT_STEPS = 10.0
"""... stopped for so many usual steps, and at least `SILENT_FLOOR_SECONDS`."""
SILENT_FLOOR_SECONDS = 10.0
RETURN_SECONDS = 10.0
"""A coordinator (or leader) that has just started waits so long for agents that are not back yet."""
POLL_SECONDS = 0.05
"""How often a fresh suspicion is looked at; the longer it lasts, the less often."""
DEPARTED = "WorkerLeft"
"""The reason of a worker that left on its own."""


class Verdict(StrEnum):
    ALIVE = "alive"
    UNKNOWN = "unknown"  # not heard of yet by this coordinator
    SUSPECTED = "suspected"
    LEAVING = "leaving"
    FAILED = "failed"  # a process of it failed; the agent lives
    SUCCEEDED = "succeeded"
    STOPPED = "stopped"
    LOST = "lost"


class Kind(StrEnum):
    """Which rung a restart is booked on (`status.restarts`)."""

    PROCESS = "process"
    POD = "pod"
    NODE = "node"


@dataclass(frozen=True, slots=True)
class Judgement:
    member: Member
    verdict: Verdict
    reason: str = ""  # CamelCase
    message: str = ""
    costs: bool = False  # budget
    kind: Kind = Kind.PROCESS
    agent: Agent | None = None
    worker: Worker | None = None

    @property
    def bad(self) -> bool:
        return self.verdict in (Verdict.LOST, Verdict.FAILED)


@dataclass(frozen=True, slots=True)
class Facts:
    """What one job's members are judged from."""

    workers: Mapping[str, Worker]  # by UID
    agents: Mapping[str, Sequence[Agent]]  # by the worker's UID: every boot that is remembered, in the order of their joining
    blind: bool = False  # the coordinator suspects itself: connections prove nothing now
    leading_since: float = 0.0  # mono
    listening_since: float = 0.0  # mono: since when the coordinator process listens; it may have restarted
    settled: float = 0.0  # mono: since when no handshakes queue; timers stand still while they do
    outcomes: Mapping[str, Verdict] = field(default_factory=dict)  # by the worker's UID: how members have ended, known from before


@dataclass(frozen=True, slots=True)
class _Peers:
    """What the members of a generation prove for each other."""

    failed: bool  # a process of one of them failed
    stopped_for: float | None  # seconds since any connected member stepped; None: none has ever reported a step
    told_stopped_for: float | None  # the same by their own last words, which may be older than a step
    usual: float  # step time in seconds
    blind: bool


def judge(generation: Generation, facts: Facts, now: Clock) -> tuple[Judgement, ...]:
    """One judgement for each member, in the order of the members."""
    first = [_own(member, generation.number, facts, now) for member in generation.members]
    connected = [j.agent for j in first if j.agent is not None and j.agent.connected]
    peers = _Peers(
        failed=any(j.verdict is Verdict.FAILED for j in first),
        stopped_for=_steps_stopped_for(connected, now),
        told_stopped_for=min((agent.heard - agent.stepped for agent in connected if agent.stepped), default=None),
        usual=usual_step_seconds(connected),
        # Nobody connected, or nobody heard: then the fault is more likely between them and us.
        blind=facts.blind or all(now.mono - agent.heard > SILENT_SECONDS for agent in connected),
    )
    doubtful = {Verdict.ALIVE: _silent, Verdict.SUSPECTED: _closed, Verdict.UNKNOWN: _not_back}
    return tuple(doubtful[j.verdict](j, facts, now, peers) if j.verdict in doubtful else j for j in first)


def next_doubt(judgements: Sequence[Judgement], now: Clock) -> float | None:
    """Seconds until time alone may change a verdict; None: only news can."""
    connected = [j.agent for j in judgements if j.agent is not None and j.agent.connected]
    waits: list[float] = []
    for j in judgements:
        if j.verdict is Verdict.UNKNOWN:
            waits.append(1.0)
        elif j.verdict is Verdict.SUSPECTED:
            age = now.mono - j.agent.since if j.agent is not None and not j.agent.connected else 1.0
            waits.append(min(1.0, max(POLL_SECONDS, age / 8)))
    stopped_for = _steps_stopped_for(connected, now)
    if stopped_for is not None and any(j.verdict is Verdict.ALIVE for j in judgements):
        waits.append(max(1.0, _stopped_limit(usual_step_seconds(connected)) - stopped_for))
    return min(waits) if waits else None


def _own(member: Member, number: int, facts: Facts, now: Clock) -> Judgement:
    """What the member's own pod and agent say; what is SUSPECTED, UNKNOWN or ALIVE is looked at again, with its peers."""
    worker = facts.workers.get(member.uid)
    boots = facts.agents.get(member.uid, ())
    agent = next((a for a in boots if a.boot == member.boot), None)
    known = facts.outcomes.get(member.uid) or _outcome(agent, number)
    leaving = worker is None or worker.deleting or bool(worker.evicted) or bool(agent is not None and agent.state.leaving)

    def of(verdict: Verdict, reason: str = "", message: str = "", costs: bool = False, kind: Kind = Kind.POD) -> Judgement:
        return Judgement(member, verdict, reason, message, costs, kind, agent, worker)

    if known is Verdict.SUCCEEDED or (worker is not None and worker.phase is Phase.SUCCEEDED):
        return of(Verdict.SUCCEEDED)
    if known is Verdict.STOPPED:
        return of(Verdict.STOPPED, *_departure(worker, agent)) if leaving else of(Verdict.STOPPED)
    if worker is None:
        return of(Verdict.LOST, "PodDeleted", "its pod was deleted")
    if worker.phase is Phase.FAILED:
        return of(Verdict.LOST, *_how_it_ended(worker), costs=not leaving)
    if any(a.boot != member.boot for a in boots[boots.index(agent) + 1 if agent in boots else 0 :]):
        return of(Verdict.LOST, "AgentRestarted", "its agent was restarted in the same pod", costs=not leaving)
    if known is Verdict.FAILED:
        return of(known, costs=not leaving, kind=Kind.PROCESS)
    if leaving:
        verdict = Verdict.LEAVING if agent is not None and agent.connected else Verdict.LOST
        return of(verdict, *_departure(worker, agent))
    if agent is None:
        return of(Verdict.UNKNOWN)
    return of(Verdict.ALIVE if agent.connected else Verdict.SUSPECTED)


def _outcome(agent: Agent | None, number: int) -> Verdict | None:
    if agent is None or agent.state.generation != number:
        return None
    return {
        messages.SUCCEEDED: Verdict.SUCCEEDED,
        messages.FAILED: Verdict.FAILED,
        messages.STOPPED: Verdict.STOPPED,
    }.get(agent.state.phase)


def _departure(worker: Worker | None, agent: Agent | None) -> tuple[str, str]:
    if worker is not None and worker.evicted:
        return "Evicted", f"its pod was evicted ({worker.evicted})"
    if worker is None or worker.deleting:
        return "PodDeleted", "its pod was deleted"
    return DEPARTED, f"its agent was told to leave ({agent.state.leaving if agent is not None else 'SIGTERM'})"


def _how_it_ended(worker: Worker) -> tuple[str, str]:
    if worker.evicted:
        return "Evicted", f"its pod was evicted ({worker.evicted})"
    if worker.oom_killed:
        return "OOMKilled", "its container ran out of memory"
    if worker.trouble:
        return worker.trouble, worker.trouble_message
    if worker.signal:
        return "PodFailed", f"its container was ended by signal {worker.signal}"
    return "PodFailed", f"its container ended with exit code {worker.exit_code}"


def _lost(j: Judgement, reason: str, message: str, *, costs: bool) -> Judgement:
    kind = Kind.NODE if reason == "NodeLost" else Kind.POD
    return replace(j, verdict=Verdict.LOST, reason=reason, message=message, costs=costs, kind=kind)


def _silent(j: Judgement, facts: Facts, now: Clock, peers: _Peers) -> Judgement:
    """An open connection: silence is nothing by itself. It counts when the steps have stopped, too, and nobody answers a probe."""
    assert j.agent is not None and j.worker is not None
    silent_for = now.mono - j.agent.heard
    if j.worker.node_ready:
        stopped = peers.stopped_for is not None and peers.stopped_for > _stopped_limit(peers.usual)
    else:
        stopped = peers.stopped_for is None or peers.stopped_for > peers.usual
    if not stopped or silent_for <= SILENT_SECONDS:
        return j
    if peers.blind or silent_for <= SILENT_LOST_SECONDS:
        return replace(j, verdict=Verdict.SUSPECTED)
    if j.worker.node_ready:
        return _lost(j, "AgentSilent", "it fell silent and the group stopped", costs=True)
    return _lost(j, "NodeLost", f"node {j.worker.node} is not ready, its agent is silent and the group stopped", costs=False)


def _closed(j: Judgement, facts: Facts, now: Clock, peers: _Peers) -> Judgement:
    """A closed connection: lost when a peer's process failed, too, or when the group does not go on stepping."""
    assert j.agent is not None and j.worker is not None
    if j.worker.node_ready:
        lost = _lost(j, "ConnectionLost", "its connection broke and did not come back", costs=True)
    else:
        lost = _lost(j, "NodeLost", f"node {j.worker.node} is not ready and the connection to its agent broke", costs=False)
    age = now.mono - max(j.agent.since, facts.listening_since, facts.settled)
    if age >= RETURN_SECONDS and not j.worker.node_ready:
        return lost
    if peers.blind:
        return j
    came_down_with_us = j.agent.since <= facts.listening_since
    if came_down_with_us and age < (UNKNOWN_STEP_SECONDS if peers.failed else RETURN_SECONDS):
        return j
    if peers.failed and age >= PEER_FAILED_SECONDS:
        return lost
    still = age if peers.told_stopped_for is None else min(age, peers.told_stopped_for)
    overdue = peers.usual + (SUSPECT_SECONDS if j.worker.node_ready else 0.0)  # no step is made like clockwork
    return lost if age >= SUSPECT_SECONDS and still >= overdue else j


def _not_back(j: Judgement, facts: Facts, now: Clock, peers: _Peers) -> Judgement:
    """A member that this coordinator has not heard of: it gets time to come back, and more while the group steps."""
    waited = now.mono - max(facts.leading_since, facts.listening_since, facts.settled)
    steps_on = peers.stopped_for is not None and peers.stopped_for < _stopped_limit(peers.usual)
    if peers.blind or waited < RETURN_SECONDS or (steps_on and not peers.failed):
        return j
    return _lost(j, "AgentNotBack", "its agent did not come back to the coordinator", costs=True)


def _steps_stopped_for(agents: Sequence[Agent], now: Clock) -> float | None:
    """Seconds since any of these stepped; None where none has ever reported a step."""
    stepped = [agent.stepped for agent in agents if agent.stepped]
    return now.mono - max(stepped) if stepped else None


def _stopped_limit(usual: float) -> float:
    return max(SILENT_FLOOR_SECONDS, SILENT_STEPS * usual)


def steps_on(agents: Sequence[Agent], now: Clock) -> bool:
    """Whether a group goes on stepping, by the word of those that are connected."""
    stopped_for = _steps_stopped_for(agents, now)
    return stopped_for is not None and stopped_for < max(UNKNOWN_STEP_SECONDS, SILENT_STEPS * usual_step_seconds(agents))


def usual_step_seconds(agents: Sequence[Agent]) -> float:
    """The group's usual step time in seconds; `UNKNOWN_STEP_SECONDS` where none is known."""
    known = [agent.progress.step_seconds for agent in agents if agent.progress.step_seconds]
    return max(known) if known else UNKNOWN_STEP_SECONDS
