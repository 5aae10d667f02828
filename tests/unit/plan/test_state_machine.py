"""Random interleavings of faults, stale reads, two operators and late orders; the invariants hold at every moment."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from lepton_operator import conditions
from simulation import Simulation

number = st.integers(0, 5)


class Generations(RuleBasedStateMachine):
    """Invariants: one generation of a number; no two members with one rank; no agent goes back; progress once the faults end."""

    def __init__(self) -> None:
        super().__init__()
        self.sim = Simulation(replicas=3, minimum=1, recovery={"maxRestarts": 1000})

    @initialize(running=st.booleans())
    def the_group_may_run_already(self, running: bool) -> None:
        if running:
            self.sim.settle(rounds=3)

    def pick(self, at: int, agents: bool = True) -> str:
        pool = list(self.sim.agents if agents else self.sim.workers)
        return pool[at % len(pool)] if pool else ""

    @rule(which=st.integers(0, 1), stale=st.booleans())
    def an_operator_looks(self, which: int, stale: bool) -> None:
        self.sim.decide(which, stale=stale)

    @rule(which=st.integers(0, 1))
    def an_operator_restarts(self, which: int) -> None:
        self.sim.restart_operator(which)

    @rule(at=number)
    def a_pod_starts(self, at: int) -> None:
        self.sim.start_pod(self.pick(at, agents=False))

    @rule(at=number)
    def an_order_arrives(self, at: int) -> None:
        self.sim.deliver(self.pick(at))

    @rule(at=number)
    def ranks_start(self, at: int) -> None:
        self.sim.start_ranks(self.pick(at))

    @rule(at=number, code=st.sampled_from([1, 137]))
    def ranks_fail(self, at: int, code: int) -> None:
        self.sim.end_ranks(self.pick(at), code)

    @rule(at=number)
    def a_pod_is_deleted(self, at: int) -> None:
        self.sim.delete_pod(self.pick(at, agents=False))

    @rule(at=number)
    def a_pod_dies(self, at: int) -> None:
        self.sim.kill_pod(self.pick(at, agents=False))

    @rule(at=number)
    def a_connection_breaks(self, at: int) -> None:
        self.sim.disconnect(self.pick(at))

    @rule(at=number)
    def an_agent_reconnects(self, at: int) -> None:
        self.sim.reconnect(self.pick(at))

    @rule(replicas=st.integers(1, 4))
    def the_job_is_scaled(self, replicas: int) -> None:
        self.sim.scale(replicas)

    @rule(at=number)
    def an_agent_is_told_to_leave(self, at: int) -> None:
        self.sim.leave(self.pick(at))

    @rule(at=number)
    def a_pod_is_being_deleted(self, at: int) -> None:
        self.sim.mark_deleting(self.pick(at, agents=False))

    @rule(at=number)
    def ranks_call_should_stop(self, at: int) -> None:
        self.sim.can_stop(self.pick(at))

    @rule(at=number)
    def ranks_stop(self, at: int) -> None:
        self.sim.stop_ranks(self.pick(at))

    @rule()
    def the_coordinator_restarts(self) -> None:
        self.sim.restart_coordinator()

    @rule(at=number, older=number)
    def an_older_order_arrives_late(self, at: int, older: int) -> None:
        self.sim.deliver(self.pick(at), older=older)

    @rule(step=st.integers(1, 50))
    def the_group_steps(self, step: int) -> None:
        self.sim.step(step)

    @rule(seconds=st.sampled_from([0.05, 0.3, 2.0, 12.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.sim.tick(seconds)

    @invariant()
    def nothing_is_violated(self) -> None:
        assert self.sim.violations == []

    def teardown(self) -> None:
        """Once the faults end, the whole group runs one generation: progress whenever `minReplicas` live."""
        sim = self.sim
        sim.settle(rounds=80)
        assert sim.violations == []
        wanted = sim.body["spec"]["workers"]["replicas"]
        if conditions.is_true(sim.status.conditions, conditions.FAILED):
            return
        running = sim.running()
        assert len(running) == wanted, (sim.status, [w for w in sim.workers.values()], [a.state for a in sim.agents.values()])
        assert {agent.state.generation for agent in running} == {sim.status.rendezvous.generation}
        assert sorted(agent.state.group_rank for agent in running) == list(range(wanted))
        sim.step(1000)
        sim.decide()
        sim.decide()
        assert sim.status.state == "Running"


Generations.TestCase.settings = settings(
    max_examples=120,
    stateful_step_count=30,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
TestGenerations = Generations.TestCase
