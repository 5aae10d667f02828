"""A world in a box for the plan: jobs, workers, agents and one or two operators, with faults at any moment and a clock of its own.

Nothing is mocked of what decides: `plan` is the real one. The simulation plays the API server (conditional writes), the kubelet and the
agents (which obey orders late, repeatedly, out of order or not at all until told again).
"""

import copy
import random
from dataclasses import dataclass, field, replace
from typing import Any

from lepton_operator.decision.plan import Memory, Plan, Rejection, World, plan
from lepton_operator.job import read_job
from lepton_operator.status import Status, read_status
from lepton_operator.worker import Agent, Clock, GroupOrder, Phase, Worker
from lepton_trainer.protocol.messages import FAILED, IDLE, PREPARED, RUNNING, STOPPED, SUCCEEDED, ProcessExit, Progress, State


def manifest(replicas: int = 2, minimum: int | None = None, **spec: Any) -> dict[str, Any]:
    workers: dict[str, Any] = {"replicas": replicas}
    if minimum is not None:
        workers["minReplicas"] = minimum
    return {
        "metadata": {"namespace": "team", "name": "digits", "uid": "job-uid", "generation": 1, "resourceVersion": "1"},
        "spec": {"trainer": {"command": ["python", "train.py"]}, "workers": workers, **spec},
        "status": {},
    }


@dataclass
class SimAgent:
    """The agent inside a worker, as the real one behaves: it obeys the newest order and refuses lower numbers."""

    index: int
    uid: str
    boot: str
    joined: float
    connected: bool = True
    since: float = 0.0
    state: State = field(default_factory=lambda: State(1))
    progress: Progress = field(default_factory=Progress)
    failed_order: int = 0
    stepped: float = 0.0
    round: int = 0
    given: tuple[dict[str, str], tuple[str, ...]] = ({}, ())  # environment and arguments of the newest order
    ran: list[tuple[int, int]] = field(default_factory=list)  # (generation, group rank) whose processes it started

    def facts(self, mono: float) -> Agent:
        return Agent(
            self.index,
            self.uid,
            self.boot,
            f"host-{self.index}",
            1,
            self.state,
            self.progress,
            self.connected,
            self.since,
            self.joined,
            mono if self.connected else self.since,
            self.stepped,
            self.failed_order,
        )


@dataclass
class Operator:
    name: str
    memory: Memory = field(default_factory=Memory)
    leading_since: float = 0.0
    rejection: Rejection | None = None
    stale: tuple[dict[str, Any], list[Worker]] | None = None  # job and workers as they were read some time ago


class Simulation:
    def __init__(self, replicas: int = 2, minimum: int | None = None, seed: int = 0, **spec: Any) -> None:
        self.random = random.Random(seed)
        self.mono, self.wall = 1000.0, 1_700_000_000.0
        self.body = manifest(replicas, minimum, **spec)
        self.workers: dict[str, Worker] = {}
        self.agents: dict[str, SimAgent] = {}
        self.dead_agents: list[SimAgent] = []
        self.operators = [Operator("a"), Operator("b")]
        self.order: GroupOrder | None = None
        self.older_orders: list[GroupOrder] = []
        self.listening_since = 0.0
        self.published: dict[int, str] = {}  # number -> digest, over all operators
        self.violations: list[str] = []
        self.created = 0
        self.failures = 0
        self.writes: list[Status] = []
        self.events: list[str] = []
        self.wake: float | None = None

    # -- the API server ----------------------------------------------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        return read_status(self.body["status"])

    def scale(self, replicas: int) -> None:
        self.body["spec"]["workers"]["replicas"] = replicas
        self.body["metadata"]["generation"] += 1
        self._bump()

    def _bump(self) -> None:
        self.body["metadata"]["resourceVersion"] = str(int(self.body["metadata"]["resourceVersion"]) + 1)

    def read(self) -> dict[str, Any]:
        return copy.deepcopy(self.body)

    # -- operators ---------------------------------------------------------------------------------------------------------------------

    def decide(self, which: int = 0, *, stale: bool = False, **world_changes: Any) -> Plan:
        """One look of an operator: plan, conditional write, publish, create and delete. A conflict means that nothing is done."""
        operator = self.operators[which]
        body, workers = operator.stale if stale and operator.stale is not None else (self.read(), list(self.workers.values()))
        operator.stale = (body, workers)
        world = World(
            job=read_job(body),
            workers=workers,
            agents=[a.facts(self.mono) for a in [*self.dead_agents, *self.agents.values()]],
            manager="lepton/one",
            leading_since=operator.leading_since,
            listening_since=self.listening_since,
            rejection=operator.rejection,
            checkpoints="/checkpoints/digits",
        )
        world = replace(world, **world_changes)
        decided = plan(world, operator.memory, Clock(self.wall, self.mono))
        if decided.status is not None:
            if body["metadata"]["resourceVersion"] != self.body["metadata"]["resourceVersion"]:
                return decided  # 409: read again, plan again
            self.body["status"] = decided.status.to_json()
            self.writes.append(decided.status)
            self._bump()
        operator.memory = decided.memory
        self.events += [event.reason for event in decided.events]
        if decided.order is not None:
            self.publish(decided.order)
        for deletion in decided.delete:
            self.delete_pod(deletion.worker.uid)
        for index in decided.create:
            self.create(index)
        self.wake = decided.wake
        return decided

    def restart_operator(self, which: int = 0) -> None:
        self.operators[which] = Operator(self.operators[which].name, leading_since=self.mono)

    def publish(self, order: GroupOrder) -> None:
        if order.number:
            known = self.published.setdefault(order.number, order.digest)
            if known != order.digest:
                self.violations.append(f"two generations of number {order.number}")
            ranks = [member.group_rank for member in order.members]
            if sorted(ranks) != list(range(len(ranks))) or len({m.worker for m in order.members}) != len(ranks):
                self.violations.append(f"generation {order.number}: ranks {ranks} are not one each")
            if self.order is not None and order.number < self.order.number:
                return  # the real coordinator delivers it, and the agents refuse it: checked in deliver()
        if self.order is not None and (not self.older_orders or self.older_orders[-1].number != self.order.number):
            self.older_orders.append(self.order)
        self.order = order

    # -- the kubelet -------------------------------------------------------------------------------------------------------------------

    def create(self, index: int) -> None:
        self.created += 1
        uid = f"pod-{self.created}"
        self.workers[uid] = Worker(f"digits-{index}-{self.created}", uid, index, Phase.PENDING, "1", float(int(self.wall)), node="n1")

    def start_pod(self, uid: str) -> None:
        if uid in self.workers and self.workers[uid].phase is Phase.PENDING:
            self.workers[uid] = replace(self.workers[uid], phase=Phase.RUNNING, started=self.wall)
            boot = f"{uid}-boot"
            self.agents[uid] = SimAgent(self.workers[uid].index, uid, boot, self.mono, since=self.mono)

    def delete_pod(self, uid: str) -> None:
        self.workers.pop(uid, None)
        self._drop(uid)

    def kill_pod(self, uid: str, exit_code: int = 137) -> None:
        """The container ends by itself: the pod object stays, Failed."""
        if uid in self.workers and self.workers[uid].phase in (Phase.PENDING, Phase.RUNNING):
            self.workers[uid] = replace(self.workers[uid], phase=Phase.FAILED, exit_code=exit_code, ended=self.wall)
            self._drop(uid)

    def _drop(self, uid: str) -> None:
        agent = self.agents.pop(uid, None)
        if agent is not None:
            agent.connected, agent.since = False, self.mono
            self.dead_agents.append(agent)

    # -- agents ------------------------------------------------------------------------------------------------------------------------

    def deliver(self, uid: str, older: int | None = None) -> None:
        """The agent hears the current order (again, perhaps), or an older one that was under way for long, and obeys it."""
        agent, order = self.agents.get(uid), self.order
        if older is not None and self.older_orders:
            order = self.older_orders[older % len(self.older_orders)]
            order = replace(order, shutdown={})
        if agent is None or order is None or not agent.connected:
            return
        if uid in order.shutdown:
            verdict = order.shutdown[uid]
            if uid not in self.workers:
                return
            phase = Phase.SUCCEEDED if verdict == "complete" else Phase.FAILED
            self.workers[uid] = replace(self.workers[uid], phase=phase, exit_code=0 if verdict == "complete" else 1)
            self._drop(uid)
            return
        place = next((m for m in order.members if m.uid == uid and m.boot == agent.boot), None)
        if place is None or order.number <= agent.state.highest:
            if order.number < agent.state.highest and place is not None:
                agent.state = replace(agent.state, refusal=f"lower than {agent.state.highest}")
            return
        agent.state = State(
            agent.state.seq + 1,
            PREPARED,
            order.number,
            order.number,
            place.group_rank,
            len(order.members),
            order.digest,
            round=order.round,
        )
        if order.round != agent.round:  # levels of an earlier round are forgotten
            kept = {"steps_total": agent.progress.steps_total, "samples_total": agent.progress.samples_total}
            agent.round, agent.progress = order.round, Progress(order.number, reported=True, **kept)
        agent.given = (order.env, order.args)

    def start_ranks(self, uid: str) -> None:
        agent = self.agents.get(uid)
        if agent is not None and agent.state.phase == PREPARED:
            if any(number >= agent.state.generation for number, _ in agent.ran):
                self.violations.append(f"{uid} started generation {agent.state.generation} after {agent.ran}")
            agent.ran.append((agent.state.generation, agent.state.group_rank))
            agent.state = replace(agent.state, seq=agent.state.seq + 1, phase=RUNNING)

    def step(self, step: int, **progress: Any) -> None:
        for agent in self.agents.values():
            if agent.state.phase == RUNNING:
                agent.stepped = self.mono
                first = agent.progress.first_step if agent.progress.generation == agent.state.generation else None
                agent.progress = Progress(
                    generation=agent.state.generation,
                    step=step,
                    first_step=step if first is None else first,
                    first_step_time=self.wall,
                    steps_total=agent.progress.steps_total + 1,
                    samples_total=agent.progress.samples_total + 32,
                    reported=True,
                    step_seconds=0.01,
                    **progress,
                )

    def end_ranks(self, uid: str, exit_code: int = 1, **exit_: Any) -> None:
        agent = self.agents.get(uid)
        if agent is None or agent.state.phase != RUNNING:
            return
        self.failures += 1
        exits = (ProcessExit(agent.state.group_rank, 0, exit_code, **exit_),)
        phase = SUCCEEDED if exit_code == 0 else FAILED
        agent.failed_order = self.failures if exit_code else 0
        agent.state = replace(agent.state, seq=agent.state.seq + 1, phase=phase, exits=exits if exit_code else ())

    def leave(self, uid: str) -> None:
        """The agent gets SIGTERM."""
        if uid in self.agents:
            agent = self.agents[uid]
            agent.state = replace(agent.state, seq=agent.state.seq + 1, leaving="SIGTERM")

    def can_stop(self, uid: str) -> None:
        if uid in self.agents and self.agents[uid].state.phase == RUNNING:
            self.agents[uid].state = replace(self.agents[uid].state, can_stop=True)

    def stop_ranks(self, uid: str) -> None:
        """The ranks of one worker have stopped in good order, as they were asked to."""
        agent = self.agents.get(uid)
        if agent is not None and agent.state.phase == RUNNING and self.order is not None and self.order.stop_requested:
            agent.state = replace(agent.state, seq=agent.state.seq + 1, phase=STOPPED)

    def restart_coordinator(self) -> None:
        """Every connection is gone; agents come back one by one."""
        self.listening_since = self.mono
        for uid in self.agents:
            self.disconnect(uid)

    def mark_deleting(self, uid: str) -> None:
        """Somebody deletes the pod: it has its grace period."""
        if uid in self.workers:
            self.workers[uid] = replace(self.workers[uid], deleting=True)

    def evict(self, uid: str) -> None:
        """As the API's eviction does: the pod is marked, its agent told to leave, and later it is gone."""
        if uid in self.workers:
            self.workers[uid] = replace(self.workers[uid], deleting=True, evicted="EvictionByEvictionAPI")
            self.leave(uid)

    def disconnect(self, uid: str) -> None:
        if uid in self.agents and self.agents[uid].connected:
            self.agents[uid].connected, self.agents[uid].since = False, self.mono

    def reconnect(self, uid: str) -> None:
        if uid in self.agents and not self.agents[uid].connected:
            self.agents[uid].connected, self.agents[uid].since = True, self.mono

    def tick(self, seconds: float) -> None:
        self.mono += seconds
        self.wall += seconds

    # -- going on until it is quiet ------------------------------------------------------------------------------------------------------

    def settle(self, rounds: int = 60, which: int = 0, tick: float = 1.0, quiet: float = 20.0) -> None:
        """No more faults: everything that is ordered happens, until nothing has changed for `quiet` seconds (or `rounds` are over)."""
        before, since = self._picture(), self.mono
        for _ in range(rounds):
            for uid in list(self.agents):
                self.reconnect(uid)
            for uid, worker in list(self.workers.items()):
                if worker.phase is Phase.PENDING:
                    self.start_pod(uid)
            self.decide(which)
            for uid in list(self.agents):
                self.deliver(uid)
            for uid in list(self.agents):
                self.start_ranks(uid)
                self.stop_ranks(uid)
            for uid, worker in list(self.workers.items()):
                if worker.deleting or (uid in self.agents and self.agents[uid].state.leaving):
                    self.delete_pod(uid)
            self.decide(which)
            self.tick(tick)
            now = self._picture()
            if now != before:
                before, since = now, self.mono
            elif self.mono - since >= quiet and (self.wake is None or self.wake > tick):
                return

    def _picture(self) -> object:
        return (
            dict(self.workers),
            {uid: (a.connected, a.state) for uid, a in self.agents.items()},
            self.status.rendezvous,
            self.status.conditions,
        )

    def running(self) -> list[SimAgent]:
        return [a for a in self.agents.values() if a.state.phase == RUNNING]


__all__ = ["FAILED", "IDLE", "PREPARED", "RUNNING", "STOPPED", "SUCCEEDED", "SimAgent", "Simulation", "manifest"]
