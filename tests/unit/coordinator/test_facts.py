"""What the operator knows of agents, from made-up words at made-up times."""

from typing import Any

from lepton_operator.coordinator.facts import JobFacts
from lepton_operator.coordinator.messages import Dropped, Joined, Progressed, Reported
from lepton_trainer.protocol.messages import FAILED, PREPARED, Progress, State

JOB = "default/digits"


def joined(uid: str = "pod-0", boot: str = "a", at: float = 10.0, **changes: Any) -> Joined:
    defaults: dict[str, Any] = {"worker": 0, "host": "h", "procs": 1, "metrics_port": 9400, "state": State(seq=1), "progress": Progress()}
    return Joined(job=JOB, uid=uid, boot=boot, at=at, **{**defaults, **changes})


def failed(uid: str = "pod-0", generation: int = 1, seq: int = 2) -> Reported:
    return Reported(JOB, uid, "a", State(seq=seq, phase=FAILED, generation=generation), 11.0)


def progressed(at: float, **progress: Any) -> Progressed:
    return Progressed(JOB, "pod-0", "a", Progress(**progress), at)


def facts_of(*uids: str) -> JobFacts:
    facts = JobFacts()
    for uid in uids or ("pod-0",):
        facts.joined(joined(uid))
    return facts


def test_connection_times_follow_drops_and_returns() -> None:
    facts = facts_of()
    assert facts.dropped(Dropped(JOB, "pod-0", "a", 20.0))
    (agent,) = facts.agents()
    assert (agent.connected, agent.since, agent.joined) == (False, 20.0, 10.0)
    assert not facts.dropped(Dropped(JOB, "pod-0", "a", 21.0))
    facts.joined(joined(at=30.0))
    (agent,) = facts.agents()
    assert (agent.connected, agent.since, agent.joined) == (True, 30.0, 10.0)


def test_the_later_join_of_a_worker_comes_last_even_when_it_is_an_older_boot() -> None:
    facts = facts_of()
    facts.joined(joined(boot="b", at=20.0))
    assert [agent.boot for agent in facts.agents()] == ["a", "b"]
    facts.joined(joined(boot="a", at=30.0))
    assert [agent.boot for agent in facts.agents()] == ["b", "a"]


def test_failures_are_numbered_in_the_order_of_arrival_once_for_each_generation() -> None:
    facts = facts_of("pod-0", "pod-1")
    facts.reported(failed("pod-1"))
    facts.reported(failed("pod-0"))
    facts.reported(failed("pod-1", seq=3))
    orders = {agent.uid: agent.failed_order for agent in facts.agents()}
    assert orders == {"pod-1": 1, "pod-0": 2}
    facts.reported(failed("pod-1", generation=2, seq=4))
    assert {agent.uid: agent.failed_order for agent in facts.agents()} == {"pod-1": 3, "pod-0": 2}


def test_a_failure_learned_at_a_join_counts_once_over_reconnections() -> None:
    facts = JobFacts()
    state = State(seq=5, phase=FAILED, generation=1)
    facts.joined(joined(state=state))
    facts.joined(joined(state=state, at=12.0))
    assert [agent.failed_order for agent in facts.agents()] == [1]


def test_a_state_that_says_nothing_new_is_no_change() -> None:
    facts = facts_of()
    assert facts.reported(Reported(JOB, "pod-0", "a", State(seq=2, phase=PREPARED, generation=1), 11.0))
    assert not facts.reported(Reported(JOB, "pod-0", "a", State(seq=3, phase=PREPARED, generation=1), 12.0))
    assert facts.agents()[0].heard == 12.0


def test_stepped_is_when_the_step_moved_by_the_agents_word_or_by_arrival() -> None:
    facts = facts_of()
    assert facts.agents()[0].stepped == 0.0
    facts.progressed(progressed(20.0, step=1))
    facts.progressed(progressed(25.0, step=1))
    assert facts.agents()[0].stepped == 20.0
    facts.progressed(progressed(30.0, step=2, step_age=4.0))
    assert facts.agents()[0].stepped == 26.0
    facts.progressed(progressed(31.0))
    assert facts.agents()[0].stepped == 26.0


def test_only_the_first_step_of_a_generation_is_a_change() -> None:
    facts = facts_of()
    assert not facts.progressed(progressed(20.0, generation=1))
    assert facts.progressed(progressed(21.0, generation=1, step=7, first_step=7))
    assert not facts.progressed(progressed(22.0, generation=1, step=8, first_step=7))
    assert facts.progressed(progressed(23.0, generation=2, step=8, first_step=8))


def test_words_of_agents_that_are_forgotten_are_no_change() -> None:
    facts = facts_of()
    assert facts.forget(("pod-0", "a")) and not facts.forget(("pod-0", "a"))
    assert (
        not facts.reported(failed())
        and not facts.progressed(progressed(20.0, step=1))
        and not facts.dropped(Dropped(JOB, "pod-0", "a", 1.0))
    )
    assert facts.agents() == []


def test_when_the_process_dies_all_are_dropped_at_that_moment() -> None:
    facts = facts_of("pod-0", "pod-1")
    facts.all_dropped(50.0)
    assert [(agent.connected, agent.since) for agent in facts.agents()] == [(False, 50.0)] * 2
