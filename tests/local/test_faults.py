"""The fault matrix: whatever dies, the others go on, nothing is lost or left behind, and the cause in the status is true.

All of it happens to one job, one test after the other; the last one lets it complete and looks at everything that was committed.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_operator.local.processes import identify
from local.lepton_run import SCRIPTS
from local.training import IMPORT_SECONDS, Training, training

FAULTS = ("SIGKILL", "SIGTERM", "SIGSEGV", "exception")
RAISED_AT = next(i for i, line in enumerate((SCRIPTS / "ledger.py").read_text().splitlines(), 1) if "raise ValueError" in line)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    """Three workers that train until they are told to end."""
    with training(tmp_path_factory.mktemp("faults"), recovery={"maxRestarts": 100}) as it:
        it.job.until(lambda: it.ledger.newest, "the first generation", IMPORT_SECONDS)
        yield it


@pytest.fixture
def running(group: Training) -> Training:
    """The group, whole and stepping."""
    group.steps_on()
    return group


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_any_rank_may_die_in_any_way_and_the_cause_is_true(running: Training, rank: int, kind: str) -> None:
    job = running.job
    agents, before = job.agents(), job.status.restarts
    running.ledger.fault(rank, kind)
    status = running.booked(before.total + 1)
    failure = status.last_failure
    assert failure is not None
    assert failure.rank == rank
    if kind == "exception":
        assert (failure.signal, failure.exit_code) == (None, 1)
        assert f"ended with exit code 1: ValueError: bad label in rank {rank} (ledger.py:{RAISED_AT})" in failure.message
        assert "Traceback" in failure.log_tail
    else:
        number = getattr(signal, kind)
        assert (failure.signal, failure.exit_code) == (number, None)
        assert f"was ended by signal {int(number)} ({kind})" in failure.message
    running.steps_on()
    assert job.agents() == agents, "every agent survives its ranks"
    restarts = job.status.restarts
    assert (restarts.process, restarts.pod) == (before.process + 1, before.pod)
    running.nothing_lost()


def test_an_agent_killed_alone_takes_its_ranks_along_and_is_replaced(running: Training) -> None:
    job = running.job
    agents, before, ranks = job.agents(), job.status.restarts, running.rank_pids()
    os.kill(agents[0], signal.SIGKILL)
    job.until(lambda: identify(ranks[0]) is None, "the dead agent's rank is gone, too", 2)
    failure = running.booked(before.total + 1).last_failure
    assert failure is not None and failure.signal == signal.SIGKILL
    assert "worker 0 " in failure.message and "ended by signal 9 (SIGKILL)" in failure.message
    running.steps_on()
    now = job.agents()
    assert now[0] != agents[0] and (now[1], now[2]) == (agents[1], agents[2]), "only the killed agent is another one"
    assert job.status.restarts.pod == before.pod + 1
    running.nothing_lost()


def test_what_is_computed_again_is_counted(running: Training) -> None:
    """A worker is killed far from the last checkpoint; a step that was made but not reported yet may be missing."""
    job = running.job
    job.until_status(lambda s: s.state == "Running", "the operator has heard of this generation's first step")
    generation, before = running.ledger.newest, counter(running, "recomputed_steps")
    job.until(lambda: running.ledger.top % 5 == 2, "some steps behind a checkpoint, and some before the next")
    os.kill(job.agents()[0], signal.SIGKILL)
    job.until_status(lambda s: s.rendezvous.generation > generation and s.rendezvous.size == 2, "the others go on")
    running.steps_on()
    job.until_status(lambda s: s.state == "Running", "the operator has heard of the last one's first step")
    made = sum(number > generation for number in running.ledger.generations())
    counted, truth = counter(running, "recomputed_steps") - before, running.ledger.made_again(generation)
    assert truth > 0 and truth - made <= counted <= truth, f"{counted} of {truth}: at most one step of each interruption may be missing"


def counter(running: Training, name: str) -> float:
    (counted,) = [value for series, value in running.job.metrics().items() if series.startswith(f"lepton_job_{name}_total")]
    return counted


def test_two_agents_killed_at_once_are_replaced(running: Training) -> None:
    job = running.job
    agents = job.agents()
    os.kill(agents[0], signal.SIGKILL)
    os.kill(agents[1], signal.SIGKILL)
    job.until_status(lambda s: s.rendezvous.size == 1, "the third goes on alone")
    running.steps_on()
    now = job.agents()
    assert now[2] == agents[2] and now[0] != agents[0] and now[1] != agents[1]
    running.nothing_lost()


def test_a_kill_while_a_generation_forms(running: Training) -> None:
    """After the failure of rank 0 another rank dies before the next generation is whole."""
    job = running.job
    agents, before, number = job.agents(), job.status.restarts, running.ledger.newest
    running.ledger.fault_at_start(1, "SIGKILL")
    running.ledger.fault(0, "SIGKILL")
    running.booked(before.total + 2)
    running.steps_on()
    assert running.ledger.newest >= number + 2
    assert job.agents() == agents
    running.nothing_lost()


def test_the_coordinator_killed_in_the_middle_disturbs_no_training(running: Training) -> None:
    job = running.job
    agents, generation, ranks, top = job.agents(), job.status.rendezvous.generation, running.rank_pids(), running.ledger.top
    os.kill(coordinator_pid(running), signal.SIGKILL)
    job.until(lambda: job.metrics().get("lepton_operator_agents") == 0.0, "the operator sees that nobody is connected", 10)
    job.until(lambda: job.metrics().get("lepton_operator_agents") == 3.0, "the agents are back", 15)
    job.until(lambda: running.ledger.top > top + 20, "steps go on")
    assert (job.agents(), job.status.rendezvous.generation, running.rank_pids()) == (agents, generation, ranks)


def test_a_worker_that_stands_still_for_a_while_is_not_thrown_out(running: Training) -> None:
    """SIGSTOP of an agent and its silence are no evidence while its group steps on."""
    job = running.job
    agents, generation, top = job.agents(), job.status.rendezvous.generation, running.ledger.top
    os.kill(agents[1], signal.SIGSTOP)
    try:
        job.until(lambda: running.ledger.top > top + 100, "a hundred steps meanwhile")
    finally:
        os.kill(agents[1], signal.SIGCONT)
    job.until(lambda: running.ledger.top > top + 120, "steps go on")
    assert (job.agents(), job.status.rendezvous.generation) == (agents, generation)
    restarts = job.status.restarts.total
    running.ledger.fault(1, "SIGKILL")  # and it listens again
    running.booked(restarts + 1)
    running.steps_on()
    assert job.agents() == agents


def test_a_worker_told_to_leave_costs_no_budget(running: Training) -> None:
    """As a preempted pod is: SIGTERM to its agent."""
    job = running.job
    agents, before = job.agents(), job.status.restarts
    os.kill(agents[1], signal.SIGTERM)
    job.until(lambda: job.agents().get(1) not in (None, agents[1]), "another worker 1", IMPORT_SECONDS)
    running.steps_on()
    now = job.agents()
    assert (now[0], now[2]) == (agents[0], agents[2])
    assert job.status.restarts.recent == before.recent
    running.nothing_lost()


def test_scaling_while_it_trains_keeps_the_others(running: Training) -> None:
    job = running.job
    agents, before = job.agents(), job.status.restarts
    for replicas in (2, 3):
        assert job.lepton("scale", "faulty", "--replicas", str(replicas)).returncode == 0
        job.until_status(lambda s, n=replicas: s.rendezvous.size == s.workers.desired == n, f"{replicas} workers train", IMPORT_SECONDS)
        running.steps_on()
        now = job.agents()
        assert (now[0], now[1]) == (agents[0], agents[1]), "they that stay keep their agents"
        job.until(lambda n=replicas: len(job.agents()) == n, f"{replicas} agents live")
        running.nothing_lost()
    assert job.status.restarts == before, "scaling is no failure"


def test_a_killed_operator_is_followed_by_one_that_disturbs_nothing(running: Training) -> None:
    """SIGKILL to `lepton run`: the agents train on, and the next `lepton run` takes them up."""
    job = running.job
    agents, generation, ranks, top = job.agents(), job.status.rendezvous.generation, running.rank_pids(), running.ledger.top
    job.signal(signal.SIGKILL)
    assert job.process is not None
    job.process.wait()
    job.process = None
    job.until(lambda: running.ledger.top > top + 20, "they train on alone")
    job.start()
    job.until(lambda: "3 living workers of an earlier run were taken up" in job.output, "they are found")
    job.until(lambda: job.metrics().get("lepton_operator_agents") == 3.0, "they are connected", 20)
    top = running.ledger.top
    job.until(lambda: running.ledger.top > top + 20, "steps go on")
    assert (job.agents(), job.status.rendezvous.generation, running.rank_pids()) == (agents, generation, ranks)
    restarts = job.status.restarts.total
    running.ledger.fault(2, "SIGKILL")  # and it can heal them
    running.booked(restarts + 1)
    running.steps_on()
    assert job.agents() == agents
    running.nothing_lost()


def test_a_worker_that_died_while_nobody_watched_is_replaced(running: Training) -> None:
    job = running.job
    agents, ranks = job.agents(), running.rank_pids()
    job.signal(signal.SIGKILL)
    assert job.process is not None
    job.process.wait()
    job.process = None
    os.kill(agents[1], signal.SIGKILL)
    job.until(lambda: identify(agents[1]) is None and identify(ranks[1]) is None, "the agent and its rank are gone", 5)
    job.start()
    job.until(lambda: job.agents().get(1) not in (None, agents[1]), "another worker 1", IMPORT_SECONDS)
    running.steps_on()
    now = job.agents()
    assert (now[0], now[2]) == (agents[0], agents[2])
    running.nothing_lost()


def test_afterwards_the_job_completes_and_nothing_was_lost_or_is_left(running: Training) -> None:
    """Every committed step was made once by all of its ranks with each of its samples; no process, file or port remains."""
    running.ends_well()


def coordinator_pid(running: Training) -> int:
    """Of the operator's own process for connections."""
    assert running.job.process is not None
    lists = Path(f"/proc/{running.job.process.pid}/task").glob("*/children")
    children = [int(word) for path in lists for word in path.read_text().split()]
    return next(pid for pid in children if b"coordinator.server" in Path(f"/proc/{pid}/cmdline").read_bytes())
