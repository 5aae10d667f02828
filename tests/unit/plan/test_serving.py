"""When a model is served, and what the condition says of it."""

from typing import Any

import pytest

from lepton_operator import conditions
from lepton_operator.conditions import Condition
from lepton_operator.decision.plan import Plan, Rejection
from lepton_operator.substrate import Served
from simulation import Simulation

DIRECTORY = "/checkpoints/digits/round-0/model"
AS_ASKED = Served(exists=True, current=True)


def sim(**spec: Any) -> Simulation:
    it = Simulation(2, checkpoint={"claimName": "shared"}, **{"serve": {"replicas": 2}, **spec})
    it.body["spec"]["trainer"] = {"builtin": {"imageClassification": {}}}
    it.settle(rounds=4)
    return it


def complete(it: Simulation, accuracy: str = "0.9") -> Simulation:
    it.step(10, metrics={"accuracy": accuracy})
    for uid in list(it.agents):
        it.end_ranks(uid, exit_code=0)
    it.decide(serves=True)
    return it


def look(it: Simulation, served: Served, **world: Any) -> Plan:
    return it.decide(serves=True, served=served, **world)


def said(it: Simulation) -> Condition:
    found = conditions.find(it.status.conditions, conditions.SERVING_READY)
    assert found is not None
    return found


def test_while_it_trains_the_condition_says_what_serving_waits_for() -> None:
    it = sim()
    assert look(it, Served()).serve == ""
    assert (said(it).status, said(it).reason) == (False, "WaitingForTraining") and "when training is complete" in said(it).message
    required = sim(evaluation={"metric": "accuracy", "target": 0.97})
    look(required, Served())
    assert "when accuracy at least 0.97 is reached" in said(required).message


def test_a_complete_job_is_served_and_ready_once_a_pod_of_it_is() -> None:
    it = complete(sim())
    assert it.status.state == "Complete" and said(it).reason == "Deploying" and it.wake is not None and it.wake < 0.1
    assert look(it, Served()).serve == DIRECTORY
    assert look(it, AS_ASKED).serve == ""
    assert (said(it).status, said(it).reason) == (False, "Deploying")
    look(it, Served(True, current=True, ready=1))
    assert said(it).status and said(it).message == f"1 of 2 pods serve {DIRECTORY} at http://digits-serve.team:8080/predict"
    look(it, Served(True, current=True, ready=2))
    assert "2 of 2 pods" in said(it).message
    assert it.events.count("Serving") == 1


def test_an_operator_that_died_before_it_could_deploy_is_followed_by_one_that_does() -> None:
    it = complete(sim())
    it.restart_operator()
    assert look(it, Served()).serve == DIRECTORY


def test_a_finished_job_acts_on_serve_and_on_nothing_else_of_its_spec() -> None:
    it = complete(sim())
    for uid in list(it.agents):
        it.decide(serves=True, served=AS_ASKED)
        it.deliver(uid)
    look(it, Served(True, current=True, ready=2))
    assert conditions.is_true(it.status.conditions, conditions.FINISHED)
    created = it.created
    it.body["spec"]["serve"] = {"replicas": 4}
    it.scale(5)
    assert look(it, Served(True, current=False, ready=2)).serve == DIRECTORY
    assert it.created == created and it.status.observed_generation == 2 and it.status.state == "Complete"


def test_serve_that_is_taken_back_takes_away_what_was_made() -> None:
    it = complete(sim(export={}))
    look(it, Served(True, current=True, ready=2))
    del it.body["spec"]["serve"]
    assert look(it, Served(exists=True)).stop_serving
    assert (said(it).status, said(it).reason) == (False, "Removed")
    assert not look(it, Served()).stop_serving


def test_a_job_that_never_asked_for_serving_has_no_such_condition() -> None:
    it = sim(serve=None)
    it.body["spec"].pop("serve")
    complete(it)
    look(it, Served())
    assert conditions.find(it.status.conditions, conditions.SERVING_READY) is None


@pytest.mark.parametrize(
    ("served", "rejection", "reason", "words"),
    [
        (Served(foreign="a Service named digits-serve"), None, "NameConflict", "does not belong to this job"),
        (Served(True, current=True, trouble="FailedCreate", trouble_message="exceeded quota"), None, "FailedCreate", "exceeded quota"),
        (Served(), Rejection("Forbidden", "deployments is forbidden", 0.0), "Forbidden", "deployments is forbidden"),
    ],
)
def test_what_keeps_a_model_from_being_served_is_said_once_in_its_own_words(
    served: Served, rejection: Rejection | None, reason: str, words: str
) -> None:
    it = complete(sim())
    for _ in range(3):
        look(it, served, serving_rejection=rejection)
        it.tick(10.0)
    assert (said(it).status, said(it).reason) == (False, reason) and words in said(it).message
    assert it.events.count("ServingFailed") == 1


def test_a_foreign_object_is_neither_adopted_nor_deleted() -> None:
    it = complete(sim(export={}))
    foreign = Served(exists=False, foreign="a Deployment named digits-serve")
    assert look(it, foreign).serve == ""
    del it.body["spec"]["serve"]
    assert not look(it, foreign).stop_serving


def test_a_model_that_is_not_good_enough_is_not_served() -> None:
    it = complete(sim(evaluation={"metric": "accuracy", "target": 0.97, "maxRounds": 1}))
    assert it.status.reason == "RequirementNotMet"
    assert look(it, Served()).serve == ""
    assert (said(it).status, said(it).reason) == (False, "RequirementNotMet")


def test_the_model_of_the_round_that_met_is_served() -> None:
    it = sim(evaluation={"metric": "accuracy", "target": 0.97})
    complete(it)
    it.settle(rounds=3)
    complete(it, "0.98")
    assert it.status.state == "Complete" and look(it, Served()).serve == "/checkpoints/digits/round-2/model"


def test_where_models_are_not_served_nothing_is_said_of_it() -> None:
    it = sim()
    for uid in list(it.agents):
        it.end_ranks(uid, exit_code=0)
    it.decide()
    assert it.status.state == "Complete" and conditions.find(it.status.conditions, conditions.SERVING_READY) is None
