"""What is done for jobs that have ended: the end counted once, and the model served where that is asked for."""

import pytest

from lepton_operator import conditions
from lepton_operator.status import read_status
from lepton_operator.substrate import Rejected, Unavailable
from lepton_operator.worker import Phase, Worker
from unit.test_reconciler import World


async def test_a_complete_jobs_model_is_served_by_whoever_leads_then_and_looked_at_again() -> None:
    world = World(serve={}, trainer={"builtin": {"imageClassification": {}}}, export={"path": "s3://models/digits"})
    world.conclude()
    world.substrate.faults = [Unavailable("not now")]  # and then that operator dies
    await world.look()
    world.reconciler = world.another()
    wake = await world.look(2)
    assert world.substrate.state.current and set(world.substrate.looked) == {"s3://models/digits"}
    assert wake is not None and wake <= 2.0


async def test_a_refusal_to_serve_reaches_the_condition_and_the_job_stays_complete() -> None:
    world = World(serve={}, trainer={"builtin": {"imageClassification": {}}}, export={"path": "s3://models/digits"})
    world.conclude()
    world.substrate.faults = [Rejected("Forbidden", "deployments.apps is forbidden")]
    await world.look(2)
    found = conditions.find(read_status(world.substrate.body["status"]).conditions, conditions.SERVING_READY)
    assert found is not None and found.reason == "Forbidden" and "deployments.apps is forbidden" in found.message
    await world.look(2)
    assert world.substrate.state.current, "tried again, with success"


async def test_nobody_asks_how_a_job_is_served_that_does_not_want_it_or_is_not_complete() -> None:
    for spec in ({}, {"serve": {}, "trainer": {"builtin": {"imageClassification": {}}}}):
        world = World(**spec)
        await world.look(3)
        assert world.substrate.looked == []


@pytest.mark.parametrize(("kind", "result"), [(conditions.COMPLETE, "complete"), (conditions.FAILED, "failed")])
async def test_the_end_of_a_job_is_counted_once_although_the_answer_to_its_last_write_was_lost(kind: str, result: str) -> None:
    world = World()
    await world.look(2)
    world.conclude(kind)
    world.substrate.lost_answers = 1
    await world.look(4)
    assert conditions.is_true(read_status(world.substrate.body["status"]).conditions, conditions.FINISHED)
    assert world.finished == [result]


async def test_a_leader_that_died_before_a_job_was_finished_has_not_counted_it_so_the_next_one_does() -> None:
    world = World()
    world.conclude()
    world.reconciler = world.another()
    await world.look(3)
    assert world.finished == ["complete"]
    world.reconciler = world.another()
    await world.look(3)
    world.reconciler.lead()
    await world.look(3)
    assert world.finished == ["complete"], "what was finished before is another's to count"


@pytest.mark.parametrize(("ended", "counted"), [(True, ["complete"]), (False, [])])
async def test_a_job_that_is_deleted_right_after_its_verdict_counts_as_ended_and_leaves_no_series(ended: bool, counted: list[str]) -> None:
    world = World()
    await world.look(2)
    if ended:
        world.conclude()
        world.substrate.made["stays"] = Worker("stays", "uid-stays", 0, Phase.RUNNING)
        await world.look()
    world.substrate.gone = True
    await world.look(2)
    assert world.finished == counted
    assert world.reconciler.summaries() == {}
