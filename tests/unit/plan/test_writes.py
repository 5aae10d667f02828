"""A job that just runs costs few writes; and whatever waits for time alone asks to be looked at again."""

from dataclasses import replace

from lepton_operator import conditions
from lepton_operator.worker import Phase
from simulation import Simulation


class Clockwork:
    """Looks at a job only when something has changed or the plan's own wake-up is due, as the work queue does."""

    def __init__(self, sim: Simulation) -> None:
        self.sim, self.looks = sim, 0
        self.due = sim.mono

    def look(self) -> None:
        writes = len(self.sim.writes)
        decided = self.sim.decide()
        self.looks += 1
        seconds = 0.05 if len(self.sim.writes) > writes else decided.wake
        self.due = self.sim.mono + seconds if seconds is not None else float("inf")

    def until(self, mono: float) -> None:
        """Lets time pass without any news."""
        while self.due <= mono:
            self.sim.tick(max(0.0, self.due - self.sim.mono))
            self.look()
        self.sim.tick(mono - self.sim.mono)


def start(replicas: int, seconds_apart: float = 0.3) -> Clockwork:
    """From apply to a running group, each pod's start and join a moment after the other's."""
    sim = Simulation(replicas)
    clockwork = Clockwork(sim)
    clockwork.look()
    for uid in list(sim.workers):
        clockwork.until(sim.mono + seconds_apart)
        sim.start_pod(uid)
        clockwork.look()
    for act in (sim.deliver, sim.start_ranks):
        for uid in sim.agents:
            act(uid)
            clockwork.look()
    assert len(sim.running()) == replicas
    return clockwork


def test_a_job_of_eight_workers_costs_at_most_six_status_writes_from_apply_to_finished() -> None:
    clockwork = start(8)
    sim = clockwork.sim
    sim.step(1)
    for _ in sim.agents:
        clockwork.look()
    progress = 0
    for step in range(2, 100):
        before = len(sim.writes)
        sim.step(step)
        clockwork.until(sim.mono + 1.0)
        progress += len(sim.writes) - before
    assert progress == 5, "after 2, 5 and 10 s, then every 30 s"
    for uid in list(sim.agents):
        sim.end_ranks(uid, exit_code=0)
        clockwork.look()
    clockwork.until(sim.mono + 0.2)
    for uid in list(sim.agents):
        sim.deliver(uid)
        clockwork.look()
    clockwork.until(sim.mono + 60.0)
    assert conditions.is_true(sim.status.conditions, conditions.FINISHED)
    assert len(sim.writes) - progress <= 6, [(w.state, w.reason, w.workers.summary) for w in sim.writes]
    assert sim.status.progress.step == 99, "the last step is known at the end"
    assert len(sim.events) == len(set(sim.events)), "each event once"


def test_progress_is_written_2_5_and_10_s_after_the_first_step_and_then_every_30_s() -> None:
    clockwork = start(1)
    sim = clockwork.sim
    sim.step(1)
    clockwork.look()
    first, seen = sim.mono, []
    for step in range(2, 1100):
        before = len(sim.writes)
        sim.step(step)
        clockwork.until(sim.mono + 0.1)
        seen += [round(sim.mono - first)] * (len(sim.writes) - before)
    assert seen == [2, 5, 10, 40, 70, 100]


def test_a_new_leader_does_not_begin_the_schedule_anew() -> None:
    clockwork = start(1)
    sim = clockwork.sim
    for step in range(1, 12):
        sim.step(step)
        clockwork.look()
        clockwork.until(sim.mono + 1.0)
    writes = len(sim.writes)
    sim.restart_operator()
    clockwork.look()
    for step in range(12, 40):
        sim.step(step)
        clockwork.until(sim.mono + 1.0)
    assert len(sim.writes) == writes
    clockwork.until(sim.mono + 5.0)
    assert len(sim.writes) == writes + 1


def test_a_healthy_group_is_not_looked_at_in_a_hurry() -> None:
    clockwork = start(4)
    sim = clockwork.sim
    sim.step(1)
    clockwork.until(sim.mono + 15.0)
    before = clockwork.looks
    for step in range(2, 602):
        sim.step(step)
        clockwork.until(sim.mono + 1.0)
    assert clockwork.looks - before < 600 / 5


def test_a_suspicion_that_lasts_is_not_looked_at_in_a_hurry() -> None:
    clockwork = start(1)
    sim = clockwork.sim
    sim.disconnect(next(iter(sim.agents)))
    clockwork.look()
    before = clockwork.looks
    clockwork.until(sim.mono + 600.0)
    assert clockwork.looks - before < 700
    assert sim.status.rendezvous.generation == 1, "no member is connected: the coordinator suspects itself"


def test_a_failed_pod_that_stays_is_no_reason_to_look_again() -> None:
    clockwork = start(2)
    sim = clockwork.sim
    sim.kill_pod(next(iter(sim.workers)))
    sim.settle()
    clockwork.look()
    clockwork.until(sim.mono + 100.0)
    before = clockwork.looks
    clockwork.until(sim.mono + 600.0)
    assert clockwork.looks - before < 5


def test_time_alone_replaces_a_lost_worker_and_ends_a_start_that_hangs() -> None:
    """No news comes any more: only the wake-ups that the plan itself asks for drive it."""
    clockwork = start(2)
    sim = clockwork.sim
    sim.step(1)
    clockwork.look()
    victim = list(sim.agents)[1]
    sim.disconnect(victim)
    clockwork.look()
    clockwork.until(sim.mono + 12.0)
    assert victim not in sim.workers, "ten seconds to come back, then it is replaced"
    replacement = next(uid for uid, w in sim.workers.items() if w.phase is Phase.PENDING)
    sim.start_pod(replacement)
    clockwork.look()
    clockwork.until(sim.mono + 2.0)
    master, other = sim.agents
    for uid in sim.agents:
        sim.deliver(uid)
    clockwork.look()
    clockwork.until(sim.mono + 130.0)
    assert master not in sim.workers and other in sim.workers, "the master never opened its store"
    assert sim.status.last_failure is not None and sim.status.last_failure.reason == "StartTimedOut"


def test_a_slow_join_is_counted_in_few_writes() -> None:
    clockwork = start(8, seconds_apart=1.0)
    assert len(clockwork.sim.writes) <= 5
    assert clockwork.sim.status.workers.ready == 8


def test_an_unchanged_world_is_written_once() -> None:
    sim = Simulation(3)
    for _ in range(20):
        sim.decide()
        sim.workers = {uid: replace(w, resource_version="9") for uid, w in sim.workers.items()}
    assert len(sim.writes) == 1


def test_a_plan_that_writes_the_first_step_says_itself_when_progress_is_due_next() -> None:
    sim = start(1).sim
    sim.step(1)
    decided = sim.decide()
    assert decided.status is not None and decided.wake is not None and 1.9 <= decided.wake <= 2.0
