"""Who is to blame: the first process that failed on its own, not its witnesses; and the sentence that tells the user what to do."""

from typing import Any

import pytest

from builders.members import NOW, Team, agent, dropped, failed_exit, group, worker
from lepton_operator.decision.cause import find_cause, of_worker
from lepton_operator.decision.evidence import Judgement
from lepton_operator.job import read_job
from lepton_operator.status import LastFailure
from lepton_operator.worker import Agent, Phase
from lepton_trainer.protocol.messages import FAILED, STOPPED
from simulation import manifest

JOB = read_job(manifest(3))


def cause_of(team: Team) -> tuple[Judgement, LastFailure]:
    return find_cause(JOB, group(), team.judge(), NOW.wall)


def failed(index: int, order: int, **exit_: Any) -> Agent:
    return agent(index, phase=FAILED, failed_order=order, exits=(failed_exit(index, **exit_),))


def test_the_first_process_that_failed_on_its_own_is_the_cause() -> None:
    team = Team(agents={0: failed(0, 1, witness=True), 1: failed(1, 3), 2: failed(2, 2)})
    culprit, failure = cause_of(team)
    assert (culprit.member.worker, failure.rank, failure.exit_code) == (2, 2, 1)


def test_a_lost_member_is_the_cause_of_what_witnesses_saw() -> None:
    team = Team({1: worker(1, phase=Phase.FAILED, exit_code=137, signal=9)}, {0: failed(0, 1, witness=True), 2: failed(2, 2, witness=True)})
    culprit, failure = cause_of(team)
    assert (culprit.member.worker, failure.reason, failure.signal) == (1, "PodFailed", 9)


@pytest.mark.parametrize(
    "gone",
    [
        Team({1: worker(1, deleting=True)}, {0: failed(0, 1, witness=True)}),
        Team({1: worker(1, deleting=True)}, {0: failed(0, 1, witness=True), 1: agent(1, phase=STOPPED)}),
        Team({}, {0: failed(0, 1, witness=True), 1: agent(1, phase=STOPPED, leaving="SIGTERM")}),
    ],
)
def test_a_member_that_leaves_is_the_cause_of_what_witnesses_saw_and_costs_nothing(gone: Team) -> None:
    culprit, failure = cause_of(gone)
    assert culprit.member.worker == 1 and not culprit.costs
    assert failure.reason in ("PodDeleted", "WorkerLeft")


def test_of_two_lost_members_the_one_that_was_seen_going_is_the_cause() -> None:
    late = {0: dropped(0, 1.0), 2: agent(2, ago=1.0)}
    culprit, _ = cause_of(Team({1: worker(1, phase=Phase.FAILED, exit_code=1)}, late))
    assert culprit.member.worker == 1


def test_witnesses_alone_are_named_when_nothing_better_is_known() -> None:
    culprit, failure = cause_of(Team(agents={0: failed(0, 2, witness=True), 2: failed(2, 1, witness=True)}))
    assert culprit.member.worker == 2 and failure.reason == "ProcessFailed"


WHERE = "rank 1 (worker 1, digits-1-abcde on node n1)"
LOGS = "see `kubectl logs -n team digits-1-abcde`"
OOM = "was killed: out of memory; raise workers.resources.limits.memory or lower the batch size"
SENTENCES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "ProcessFailed", f"{WHERE} ended with exit code 1: ValueError: bad (train.py:7); {LOGS}"),
    ({"exit_code": None, "signal": 9, "error": ""}, "ProcessSignalled", f"{WHERE} was ended by signal 9 (SIGKILL); {LOGS}"),
    ({"exit_code": None, "signal": 9, "oom_killed": True, "error": ""}, "OOMKilled", f"{WHERE} {OOM}; {LOGS}"),
    (
        {"exit_code": 127, "error": "no such file: trian.py"},
        "CommandNotFound",
        f"{WHERE} could not be started; correct spec.trainer.command: no such file: trian.py; {LOGS}",
    ),
]


@pytest.mark.parametrize(("exit_", "reason", "sentence"), SENTENCES, ids=[row[1] for row in SENTENCES])
def test_the_sentence_names_rank_worker_node_and_what_to_do(exit_: dict[str, Any], reason: str, sentence: str) -> None:
    _, failure = cause_of(Team(agents={1: failed(1, 1, **exit_)}))
    assert (failure.reason, failure.message) == (reason, sentence)
    assert (failure.worker, failure.node, failure.rank) == ("digits-1-abcde", "n1", 1)


def test_the_end_of_a_long_log_is_kept_and_the_advice_is_never_cut_off() -> None:
    _, failure = cause_of(Team(agents={1: failed(1, 1, error="x" * 5000, log_tail="a" * 5000 + "the end")}))
    assert failure.log_tail.endswith("the end") and len(failure.log_tail) == 2048
    assert len(failure.message) <= 2048 and failure.message.endswith("; see `kubectl logs -n team digits-1-abcde`")


def test_a_worker_that_ended_before_it_joined_is_explained_by_what_the_kubelet_said() -> None:
    trouble = worker(1, phase=Phase.FAILED, trouble="InitContainerFailed", trouble_message="init container agent: exit code 1 (Error)")
    failure = of_worker(JOB, trouble, NOW.wall)
    assert failure.reason == "InitContainerFailed" and "init container agent: exit code 1" in failure.message
    killed = of_worker(JOB, worker(1, phase=Phase.FAILED, exit_code=137, signal=9), NOW.wall)
    assert killed.signal == 9 and "ended by signal 9" in killed.message
