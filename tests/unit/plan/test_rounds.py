"""Training in rounds until the requirement is met: over restarts, faults and values that are no numbers."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest

from lepton_operator import conditions
from lepton_operator.decision import rounds
from lepton_operator.job import Job, read_job
from lepton_operator.status import Best, EvaluationView, Status, read_status
from lepton_operator.worker import Phase
from lepton_trainer.protocol.messages import Progress
from lepton_trainer.protocol.result import Result, dump
from simulation import Simulation, manifest

REQUIRED = {"metric": "accuracy", "target": 0.97, "maxRounds": 3}
CLAIM = {"claimName": "shared", "path": "digits"}
BUILTIN = {"builtin": {"imageClassification": {}}}


def begun(replicas: int = 2, minimum: int | None = None, *, trainer: dict[str, Any] | None = None, **spec: Any) -> Simulation:
    """A job whose first round runs."""
    sim = Simulation(replicas, minimum, checkpoint=CLAIM, **{"evaluation": REQUIRED, **spec})
    if trainer is not None:
        sim.body["spec"]["trainer"] = trainer
    sim.settle(rounds=4)
    return sim


def finish(sim: Simulation, value: float | None, steps: int = 100) -> None:
    """The round that runs reports `value` and ends; what is due then is done."""
    for agent in sim.agents.values():
        agent.progress = replace(agent.progress, metrics={})
    sim.step(steps, **({} if value is None else {"metrics": {"accuracy": repr(value), "loss": "0.5"}}))
    sim.decide()
    for uid in list(sim.agents):
        sim.end_ranks(uid, exit_code=0)
    sim.decide()


def go_on(sim: Simulation) -> None:
    sim.settle(rounds=3)


def view(sim: Simulation) -> EvaluationView:
    found = sim.status.evaluation
    assert found is not None
    return found


def true(sim: Simulation, kind: str) -> bool:
    return conditions.is_true(sim.status.conditions, kind)


# -- what a round is -----------------------------------------------------------------------------------------------------------------


def test_a_job_without_a_requirement_has_no_rounds_in_its_status_nor_in_its_orders() -> None:
    sim = Simulation(2)
    sim.settle(rounds=4)
    assert sim.status.evaluation is None and "evaluation" not in sim.body["status"]
    assert sim.order is not None and (sim.order.round, sim.order.env, sim.order.args) == (0, {}, ())


def test_a_met_requirement_completes_the_job_and_names_the_best_round() -> None:
    sim = begun()
    finish(sim, 0.981)
    assert true(sim, conditions.COMPLETE)
    assert "accuracy is 0.981 in round 1: accuracy at least 0.97 was required" in sim.status.message
    assert view(sim).met and view(sim).best == Best(1, "0.981", "/checkpoints/digits/round-1")
    assert sim.status.progress.step == 100, "its last steps are shown"


def test_a_missed_requirement_begins_the_next_round_as_a_new_generation_in_the_same_pods() -> None:
    sim = begun()
    pods = set(sim.workers)
    finish(sim, 0.9)
    assert not true(sim, conditions.COMPLETE) and (view(sim).round, sim.status.rendezvous.generation) == (2, 2)
    go_on(sim)
    assert set(sim.workers) == pods and {a.state.generation for a in sim.running()} == {2}
    assert [h.reason for h in sim.status.history] == ["FirstGroup", "NewRound"]
    finish(sim, 0.975)
    assert true(sim, conditions.COMPLETE) and view(sim).best == Best(2, "0.975", "/checkpoints/digits/round-2")
    assert [(r.round, r.value, r.steps) for r in view(sim).rounds] == [(1, "0.9", 100), (2, "0.975", 100)]


def test_the_round_and_its_generation_are_won_by_one_write() -> None:
    sim = begun()
    finish(sim, 0.9)
    pairs = {(s.evaluation.round, s.rendezvous.generation) for s in sim.writes if s.evaluation and s.rendezvous.generation}
    assert pairs == {(1, 1), (2, 2)}


def test_a_round_that_two_operators_want_to_begin_begins_once() -> None:
    sim = begun()
    sim.decide(1)
    sim.step(100, metrics={"accuracy": "0.9"})
    for uid in list(sim.agents):
        sim.end_ranks(uid, exit_code=0)
    sim.decide(0)
    sim.decide(1, stale=True)  # it read before the other wrote
    sim.decide(1)
    assert (view(sim).round, sim.status.rendezvous.generation, len(view(sim).rounds)) == (2, 2, 2) and not sim.violations


@pytest.mark.parametrize("when", ["before the end is seen", "after the round has begun", "in the middle"])
def test_an_operator_that_restarts_repeats_no_round(when: str) -> None:
    sim = begun()
    if when == "before the end is seen":
        sim.step(100, metrics={"accuracy": "0.9"})
        for uid in list(sim.agents):
            sim.end_ranks(uid, exit_code=0)
        sim.restart_operator()
        sim.decide()
    else:
        finish(sim, 0.9)
    if when == "in the middle":
        go_on(sim)
        sim.step(40)
        sim.decide()
    sim.restart_operator()
    go_on(sim)
    generation = sim.status.rendezvous.generation
    assert view(sim).round == 2 and len(view(sim).rounds) == 2 and {a.round for a in sim.running()} == {2}
    sim.restart_operator()
    go_on(sim)
    assert (view(sim).round, sim.status.rendezvous.generation) == (2, generation)
    finish(sim, 0.98)
    assert true(sim, conditions.COMPLETE) and [r.value for r in view(sim).rounds] == ["0.9", "0.98"]


def test_a_round_that_a_failure_interrupts_goes_on_where_it_was() -> None:
    sim = begun()
    finish(sim, 0.9)
    go_on(sim)
    given = next(iter(sim.agents.values())).given
    sim.step(40)
    sim.decide()
    sim.end_ranks(next(iter(sim.agents)), exit_code=1)
    go_on(sim)
    assert (view(sim).round, sim.status.rendezvous.generation) == (2, 3) and len(view(sim).rounds) == 2
    assert all(a.given == given for a in sim.running()) and given[0]["LEPTON_CHECKPOINT_DIR"] == "/checkpoints/digits/round-2"
    assert sim.status.restarts.total == 1


def test_pods_that_ended_with_the_round_while_nobody_led_are_replaced_and_their_last_words_count() -> None:
    sim = begun()
    finish_generation = sim.status.rendezvous.generation
    last = Result("complete", finish_generation, progress=Progress(finish_generation, step=100, metrics={"accuracy": "0.9"}))
    for uid in list(sim.agents):
        sim.workers[uid] = replace(sim.workers[uid], phase=Phase.SUCCEEDED, exit_code=0, result=dump(last), ended=sim.wall)
        sim.agents.pop(uid)
    sim.restart_operator()
    sim.settle(rounds=40)
    assert view(sim).round == 2 and view(sim).rounds[0].value == "0.9"
    assert len(sim.running()) == 2 and sim.status.restarts.total == 0


def test_a_pod_that_is_lost_between_two_rounds_is_replaced_before_the_next_one_begins() -> None:
    sim = begun()
    sim.step(100, metrics={"accuracy": "0.9"})
    sim.decide()
    for uid in list(sim.agents):
        sim.end_ranks(uid, exit_code=0)
    sim.disconnect(next(iter(sim.agents)))
    sim.decide()
    assert (view(sim).round, sim.status.rendezvous.generation) == (2, 1)
    assert sim.status.state == "Starting" and "1 of at least 2 workers have joined" in sim.status.message
    sim.restart_operator()
    sim.delete_pod(next(iter(sim.agents)))
    sim.settle(rounds=40)
    assert (view(sim).round, len(view(sim).rounds), len(sim.running())) == (2, 2, 2)


# -- values ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_never_best_nor_met_and_the_status_stays_json(mode: str, odd: float) -> None:
    """Lightning-AI/pytorch-lightning#2636: after a NaN no later value ever compares as better."""
    sim = begun(evaluation={**REQUIRED, "mode": mode})
    finish(sim, odd)
    assert view(sim).round == 2 and view(sim).best is None and not view(sim).met
    json.loads(json.dumps(sim.body["status"], allow_nan=False))
    assert view(sim).rounds[0].value in ("NaN", "Inf", "-Inf")
    go_on(sim)
    finish(sim, 0.98 if mode == "max" else 0.2)
    assert true(sim, conditions.COMPLETE) and view(sim).best is not None and view(sim).best.round == 2


@pytest.mark.parametrize(
    ("mode", "values", "best"), [("max", [0.9, 0.95, 0.94], 2), ("min", [5.0, 4.0, 4.5], 2), ("max", [0.9, 0.9, 0.9], 1)]
)
def test_when_all_rounds_are_spent_the_job_fails_and_the_best_is_kept_and_named(mode: str, values: list[float], best: int) -> None:
    sim = begun(evaluation={**REQUIRED, "mode": mode})
    for value in values:
        finish(sim, value)
        go_on(sim)
    assert true(sim, conditions.FAILED) and sim.status.reason == "RequirementNotMet"
    assert f"the best is {values[best - 1]:g} of round {best}, kept in /checkpoints/digits/round-{best}" in sim.status.message
    assert view(sim).best == Best(best, f"{values[best - 1]:g}", f"/checkpoints/digits/round-{best}") and view(sim).round == 3
    assert sim.status.restarts.total == 0


def test_a_metric_that_was_never_reported_fails_the_job_and_names_those_that_were() -> None:
    sim = begun(evaluation={**REQUIRED, "metric": "f1"})
    finish(sim, 0.99)
    assert true(sim, conditions.FAILED) and sim.status.reason == "MetricNotReported"
    assert "f1 was never reported (reported were accuracy, loss)" in sim.status.message


def test_a_value_of_an_earlier_round_is_none_of_this_one() -> None:
    sim = begun()
    finish(sim, 0.9)
    go_on(sim)
    assert view(sim).value == ""
    finish(sim, None)
    assert sim.status.reason == "MetricNotReported" and "no metric was reported" in sim.status.message


def test_the_last_value_counts_not_the_best_of_the_round() -> None:
    sim = begun()
    sim.step(50, metrics={"accuracy": "0.99"})
    sim.decide()
    finish(sim, 0.9)
    assert view(sim).round == 2 and view(sim).rounds[0].value == "0.9"


def test_what_is_met_is_not_decided_on_shown_digits() -> None:
    sim = begun(evaluation={**REQUIRED, "target": 0.97125})
    assert sim.body["status"]["evaluation"]["target"] == 0.97125
    finish(sim, 0.9712)
    assert view(sim).round == 2


# -- budget, progress and goodput over rounds ------------------------------------------------------------------------------------------


def test_failures_at_early_steps_of_a_later_round_are_no_standstill() -> None:
    """Three generations that broke below the steps of round 1: each of them got further in its own round."""
    sim = begun(recovery={"maxRestarts": 50})
    sim.step(100)
    sim.decide()
    sim.end_ranks(next(iter(sim.agents)), exit_code=1)
    go_on(sim)
    finish(sim, 0.9, steps=1000)
    for step in (5, 10, 15, 20):
        sim.settle(rounds=8)
        sim.step(step)
        sim.decide()
        sim.end_ranks(next(iter(sim.agents)), exit_code=1)
        sim.decide()
    assert not true(sim, conditions.FAILED)


def test_steps_of_a_new_round_are_neither_recomputed_nor_a_recovery() -> None:
    sim = begun()
    finish(sim, 0.9)
    assert sim.status.progress.step is None, "the round has made none yet"
    go_on(sim)
    assert sim.status.progress.step is None and sim.status.state == "Running"
    for step in (1, 2, 3):
        sim.step(step, total_steps=50)
        sim.decide()
        sim.tick(3.0)
        sim.decide()
    account = sim.operators[0].memory.account
    assert (account.recomputed_steps, account.recoveries, account.seconds.get("recomputing", 0.0)) == (0, 0, 0.0)
    assert (sim.status.progress.step, sim.status.progress.percent) == (3, "6%")
    assert "Recovered" not in sim.events and sim.operators[0].memory.counters.steps == 4


def test_an_interruption_in_a_later_round_counts_its_own_steps_again() -> None:
    sim = begun()
    finish(sim, 0.9, steps=1000)
    go_on(sim)
    for step in (1, 10):
        sim.step(step)
        sim.decide()
    sim.end_ranks(next(iter(sim.agents)), exit_code=1)
    go_on(sim)
    sim.step(6)
    sim.decide()
    assert sim.operators[0].memory.account.recomputed_steps == 5
    assert sim.operators[0].memory.account.recoveries == 1


def test_an_agent_that_knows_no_rounds_fails_the_job_instead_of_training_the_same_again() -> None:
    sim = begun()
    for agent in sim.agents.values():
        agent.state = replace(agent.state, round=0)
    sim.decide()
    assert true(sim, conditions.FAILED) and sim.status.reason == "AgentTooOld"
    assert "trainer image" in sim.status.message


# -- what a round is given -------------------------------------------------------------------------------------------------------------


def job(trainer: dict[str, Any] | None = None, on_miss: list[dict[str, Any]] | None = None, **spec: Any) -> Job:
    body = manifest(checkpoint=CLAIM, evaluation={**REQUIRED, **({"onMiss": on_miss} if on_miss is not None else {})}, **spec)
    if trainer is not None:
        body["spec"]["trainer"] = trainer
    return read_job(body)


def at(number: int, best: int = 1) -> EvaluationView:
    return EvaluationView("accuracy", round=number, best=Best(best, "0.9") if best else None)


def document(of: Job, seen: EvaluationView, root: str = "/checkpoints/digits") -> Any:
    return json.loads(rounds.given(of, seen, root).env["LEPTON_BUILTIN"])


def test_a_script_is_given_the_round_its_directory_and_what_the_user_changes() -> None:
    wanted = job(on_miss=[{"args": ["--lr", "0.1"]}, {"args": ["--lr", "0.01"], "env": [{"name": "LONG", "value": "1"}]}])
    assert rounds.given(wanted, at(1), "/c") == rounds.Given({"LEPTON_ROUND": "1", "LEPTON_CHECKPOINT_DIR": "/c/round-1"}, ())
    assert rounds.given(wanted, at(2), "").args == ("--lr", "0.1")
    third = rounds.given(wanted, at(3), "/c")
    assert third.args == ("--lr", "0.01") and third.env["LONG"] == "1" and third.env["LEPTON_CHECKPOINT_DIR"] == "/c/round-3"
    assert rounds.given(wanted, at(4), "/c").args == third.args
    assert rounds.words(wanted, at(3), "/c") == "args --lr 0.01, env LONG"


def test_a_script_without_on_miss_gets_the_same_again_with_another_number() -> None:
    assert rounds.given(job(), at(2), "") == rounds.Given({"LEPTON_ROUND": "2"}, ())
    assert rounds.words(job(), at(2), "") == ""


def test_the_built_in_trainer_is_given_factors_and_whose_weights_to_begin_with() -> None:
    wanted = job(BUILTIN, [{"learningRate": 0.3, "warmStart": True}, {"epochs": 2, "width": 1.5}])
    assert document(wanted, at(1, 0)) == {"imageClassification": {}, "round": {"number": 1}}
    warm = {"number": 2, "learningRate": 0.3, "warmStart": "/checkpoints/digits/round-1"}
    assert document(wanted, at(2)) == {"imageClassification": {}, "round": warm}
    assert document(wanted, at(3))["round"] == {"number": 3, "epochs": 2.0, "width": 1.5}
    assert document(wanted, at(4))["round"] == {"number": 4, "epochs": 4.0, "width": 2.25}, "the last one is applied once more"
    assert rounds.words(wanted, at(2), "/c") == "learningRate x0.3, warm start from round 1"


def test_the_weights_are_those_of_the_best_round_and_none_where_none_was_good() -> None:
    wanted = job(BUILTIN, [{"warmStart": True}])
    assert document(wanted, at(5, best=3))["round"]["warmStart"].endswith("/round-3")
    assert "warmStart" not in document(wanted, at(2, best=0))["round"]
    assert "warmStart" not in document(wanted, at(2), root="")["round"]


def test_without_on_miss_the_built_in_trainer_is_first_finer_then_longer_then_larger() -> None:
    said = [rounds.words(job(BUILTIN), at(number), "/c") for number in range(1, 6)]
    assert said == [
        "",
        "learningRate x0.3, warm start from round 1",
        "epochs x2",
        "epochs x2, width x1.5",
        "epochs x4, width x2.25",
    ]


def test_factors_stay_within_bounds_however_often_they_repeat() -> None:
    wanted = job(BUILTIN, [{"learningRate": 0.1, "epochs": 10, "width": 2}])
    change = rounds.override(wanted, 100)
    assert (change.learning_rate, change.epochs, change.width) == (0.001, 1000.0, 64.0)


@pytest.mark.parametrize(
    ("spec", "directory"),
    [
        ({}, ""),
        ({"export": {}}, "/c/round-2/model"),
        ({"serve": {}}, "/c/round-2/model"),
        ({"export": {"path": "s3://bucket/models"}}, "s3://bucket/models/round-2"),
    ],
)
def test_the_model_directory_of_a_round(spec: dict[str, Any], directory: str) -> None:
    assert rounds.model_directory(job(BUILTIN, **spec), "/c", 2) == directory


def test_what_is_delivered_stands_beside_the_task_and_serving_alone_exports_too() -> None:
    wanted = job(BUILTIN, optimise={"methods": ["prune"], "tolerance": 0.01}, serve={"replicas": 2})
    found = document(wanted, at(1, 0))
    assert found["optimise"] == {"methods": ["prune"], "tolerance": 0.01} and found["export"] == {}
    assert wanted.serve is not None and (wanted.serve.replicas, wanted.serve.port) == (2, 8080)


def test_the_status_reads_back_as_it_was_written() -> None:
    sim = begun()
    finish(sim, 0.9)
    written: Status = sim.writes[-1]
    assert read_status(written.to_json()).evaluation == written.evaluation
