"""Evidence, not silence: what is known of one member of a generation, judged by the table of docs/architecture.md.

A member is lost when somebody saw it go (the kubelet, the agent itself, a peer's failed process together with a closed connection),
not when it is quiet: a group that goes on stepping proves all its members alive. Everything here is a function of facts and the time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from lepton_operator.generation import Generation
from lepton_operator.worker import Agent, Clock, Member, Phase, Worker
from lepton_trainer.protocol import messages

PEER_FAILED_SECONDS = 0.15
"""A closed connection and a peer's failed process: lost after so long without a reconnection (a live agent tries within 0.05)."""
SUSPECT_SECONDS = 0.25
"""A closed connection alone: the group's steps are looked at from here on."""
UNKNOWN_STEP_SECONDS = 2.0
"""The step time assumed where none is known."""
SILENT_SECONDS = 6.0
"""An open connection without a word for so long is silent; silence counts only together with stopped steps."""
SILENT_STEPS = 10.0
"""... stopped for so many usual steps, and at least `SILENT_FLOOR_SECONDS`."""
SILENT_FLOOR_SECONDS = 10.0
RETURN_SECONDS = 10.0
"""A coordinator (or leader) that has just started waits so long for agents that are not back yet."""
POLL_SECONDS = 0.05


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


def judge(generation: Generation, facts: Facts, now: Clock) -> tuple[Judgement, ...]:
    """One judgement for each member, in the order of the members."""
    first = [_own(member, generation.number, facts, now) for member in generation.members]
    peer_failed = any(j.verdict is Verdict.FAILED for j in first)
    connected = [j.agent for j in first if j.agent is not None and j.agent.connected]
    stopped_for = _steps_stopped_for(connected, now)
    usual = usual_step_seconds(connected)
    blind = facts.blind or not connected
    return tuple(
        _suspect(j, now, peer_failed=peer_failed, stopped_for=stopped_for, usual=usual, blind=blind)
        if j.verdict in (Verdict.SUSPECTED, Verdict.ALIVE)
        else j
        for j in first
    )


def _own(member: Member, number: int, facts: Facts, now: Clock) -> Judgement:
    """What the member's own pod and agent say; SUSPECTED is decided later, with its peers."""
    worker = facts.workers.get(member.uid)
    boots = facts.agents.get(member.uid, ())
    agent = next((a for a in boots if a.boot == member.boot), None)
    known = _outcome(agent, number)

    def of(verdict: Verdict, reason: str = "", message: str = "", costs: bool = False, kind: Kind = Kind.POD) -> Judgement:
        return Judgement(member, verdict, reason, message, costs, kind, agent, worker)

    if known is Verdict.SUCCEEDED or (worker is not None and worker.phase is Phase.SUCCEEDED):
        return of(Verdict.SUCCEEDED)
    if worker is None:
        return of(Verdict.LOST, "PodDeleted", "its pod was deleted")
    if worker.phase is Phase.FAILED:
        return of(Verdict.LOST, *_how_it_ended(worker), costs=not (worker.deleting or worker.evicted))
    if any(a.boot != member.boot for a in boots[boots.index(agent) + 1 if agent in boots else 0 :]):
        return of(Verdict.LOST, "AgentRestarted", "its agent was restarted in the same pod", costs=not worker.deleting)
    if known is not None and known is not Verdict.FAILED:
        return of(known)
    if worker.deleting or (agent is not None and agent.state.leaving):
        if agent is None or not agent.connected:
            return of(Verdict.LOST, "PodDeleted", "its pod was deleted")
        if known is None:
            return of(Verdict.LEAVING, "PodLeaving", agent.state.leaving or "its pod is being deleted")
    if known is Verdict.FAILED:
        return of(known, kind=Kind.PROCESS, costs=True)
    if agent is None:
        if now.mono - facts.leading_since < RETURN_SECONDS:
            return of(Verdict.UNKNOWN)
        return of(Verdict.LOST, "AgentNotBack", "its agent did not come back to the coordinator", costs=True)
    if not agent.connected or not worker.node_ready:
        return of(Verdict.SUSPECTED)
    return of(Verdict.ALIVE)


def _outcome(agent: Agent | None, number: int) -> Verdict | None:
    if agent is None or agent.state.generation != number:
        return None
    return {
        messages.SUCCEEDED: Verdict.SUCCEEDED,
        messages.FAILED: Verdict.FAILED,
        messages.STOPPED: Verdict.STOPPED,
    }.get(agent.state.phase)


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


def _suspect(j: Judgement, now: Clock, *, peer_failed: bool, stopped_for: float | None, usual: float, blind: bool) -> Judgement:
    agent, worker = j.agent, j.worker
    if agent is None or worker is None:
        return j
    lost_node = not worker.node_ready
    kind = Kind.NODE if lost_node else Kind.POD
    where = f"node {worker.node} is not ready and the group stopped" if lost_node else "its connection broke and did not come back"
    reason = "NodeLost" if lost_node else "ConnectionLost"
    lost = Judgement(j.member, Verdict.LOST, reason, where, costs=not lost_node, kind=kind, agent=agent, worker=worker)
    if j.verdict is Verdict.ALIVE:
        limit = max(SILENT_FLOOR_SECONDS, SILENT_STEPS * usual)
        silent = now.mono - agent.heard > SILENT_SECONDS
        stopped = stopped_for is not None and stopped_for > limit
        if silent and stopped and not blind:
            return Judgement(j.member, Verdict.LOST, "AgentSilent", "it fell silent and the group stopped", True, kind, agent, worker)
        return j
    if blind:
        return j
    age = now.mono - agent.since if not agent.connected else SUSPECT_SECONDS
    if peer_failed and not agent.connected and age >= PEER_FAILED_SECONDS:
        return lost
    still = min(age, stopped_for) if stopped_for is not None and not agent.connected else stopped_for if agent.connected else age
    if age >= SUSPECT_SECONDS and still is not None and still >= usual:
        return lost
    return j


def _steps_stopped_for(agents: Sequence[Agent], now: Clock) -> float | None:
    """Seconds since any of these stepped; None where none has ever reported a step."""
    stepped = [agent.stepped for agent in agents if agent.stepped]
    return now.mono - max(stepped) if stepped else None


def usual_step_seconds(agents: Sequence[Agent]) -> float:
    """The group's usual step time in seconds; `UNKNOWN_STEP_SECONDS` where none is known."""
    known = [agent.progress.step_seconds for agent in agents if agent.progress.step_seconds]
    return max(known) if known else UNKNOWN_STEP_SECONDS
