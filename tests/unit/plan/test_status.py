"""The status as JSON: nothing is lost on the way, and the CRD's schema accepts all that the operator can write."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_operator import status as status_module
from lepton_operator.conditions import ORDER, Condition
from lepton_operator.local.crd import job_schema
from lepton_operator.local.schema import faults, unknown_fields
from lepton_operator.status import (
    HISTORY_LIMIT,
    RECENT_LIMIT,
    CheckpointView,
    GoodputView,
    HistoryEntry,
    Incident,
    LastFailure,
    MicroTime,
    ProgressView,
    Rendezvous,
    Restarts,
    Startup,
    Status,
    Time,
    WorkerCounts,
    read_status,
)
from simulation import Simulation

SCHEMA = job_schema()["properties"]["status"]
counts = st.integers(0, 10_000)
steps = st.none() | st.integers(0, 2**62)
words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)
seconds = st.floats(0, 1e7, allow_nan=False).map(lambda value: round(value, 3))
times = st.integers(1, 4_000_000_000).map(float).map(Time)
micro_times = st.integers(1, 4_000_000_000).map(lambda value: MicroTime(value + 0.5))
maybe = st.none() | seconds
statuses = st.builds(
    Status,
    observed_generation=counts,
    state=st.sampled_from(["", "Pending", "Running", "Complete"]),
    reason=words,
    message=words,
    manager=words,
    conditions=st.lists(
        st.builds(Condition, st.sampled_from(ORDER), st.booleans(), words, words, times, counts), max_size=7, unique_by=lambda c: c.type
    ).map(tuple),
    workers=st.builds(WorkerCounts, counts, counts, counts, counts, counts, words),
    rendezvous=st.builds(Rendezvous, counts, counts, words, words),
    progress=st.builds(ProgressView, steps, steps, words, words, maybe, maybe, words, words, micro_times),
    checkpoint=st.builds(CheckpointView, steps, words, times),
    startup=st.builds(Startup, maybe, maybe, maybe, maybe),
    restarts=st.builds(
        Restarts,
        counts,
        counts,
        counts,
        counts,
        counts,
        st.lists(st.builds(Incident, micro_times, words, counts, st.lists(words, max_size=3).map(tuple), steps), max_size=4).map(tuple),
    ),
    last_failure=st.none() | st.builds(LastFailure, micro_times, words, st.none() | counts, words, words, st.none() | counts),
    goodput=st.builds(GoodputView, words, seconds, st.dictionaries(words, seconds, max_size=3), maybe, counts, counts, counts),
    history=st.lists(st.builds(HistoryEntry, counts, micro_times, counts, words), max_size=HISTORY_LIMIT).map(tuple),
    start_time=times,
    completion_time=times,
    selector=words,
)


def refused(status: dict[str, Any]) -> list[str]:
    return [str(fault) for fault in faults(status, SCHEMA)] + list(unknown_fields(status, SCHEMA))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(statuses)
def test_what_is_written_is_read_back_and_fits_the_crd(status: Status) -> None:
    body = status.to_json()
    if status.last_failure == LastFailure():
        status = replace(status, last_failure=None)
    assert read_status(body) == status
    assert refused(body) == []


def test_the_longest_status_fits_the_crd() -> None:
    incident = Incident(MicroTime(1.0), "ProcessFailed", 1, tuple(f"{i:036}" for i in range(8)), 2**40)
    status = Status(
        restarts=Restarts(recent=(incident,) * RECENT_LIMIT),
        last_failure=LastFailure(MicroTime(1.0), message="x" * 2048, log_tail="x" * 2048),
        history=(HistoryEntry(1, MicroTime(1.0), 1, "Grown"),) * HISTORY_LIMIT,
    )
    assert refused(status.to_json()) == []


def test_a_status_with_null_or_unknown_or_missing_parts_is_read_as_far_as_it_goes() -> None:
    status = read_status({"state": "Running", "later": {"x": 1}, "lastFailure": None, "history": [{}], "restarts": {"recent": [{}]}})
    assert status.state == "Running" and status.last_failure is None and status.history == (HistoryEntry(),)


def test_every_status_of_a_jobs_life_fits_the_crd() -> None:
    sim = Simulation(3, 1)
    sim.settle(rounds=4)
    sim.step(5, loss="nan", samples_per_second=10.0, total_steps=100, checkpoint_step=5, checkpoint_path="round-0/5")
    sim.decide()
    victim = next(iter(sim.agents))
    sim.end_ranks(victim, exit_code=139, signal=11, log_tail="Segmentation fault", error="")
    sim.settle()
    sim.kill_pod(list(sim.agents)[1])
    sim.settle()
    sim.step(9, checkpoint_step=9)
    sim.settle()
    for uid in list(sim.agents):
        sim.end_ranks(uid, exit_code=0)
    sim.settle(rounds=5)
    assert sim.status.state == "Complete" and len(sim.writes) > 8
    for status in sim.writes:
        assert refused(status.to_json()) == []
        assert read_status(status.to_json()).to_json() == status.to_json()


def test_reading_and_writing_a_status_works_names_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    status = Status(
        state="Running", history=(HistoryEntry(1, MicroTime(1.0), 2, "Grown"),) * HISTORY_LIMIT, last_failure=LastFailure(rank=1)
    )
    assert read_status(status.to_json()) == status
    monkeypatch.setattr(status_module, "_camel", None)
    assert read_status(status.to_json()) == status
