"""The table of evidence, row by row: what proves that a member is lost, what only makes it suspect, and what proves nothing."""

import pytest

from builders.members import NOW, Team, agent, dropped, failed_exit, worker
from lepton_operator.decision.evidence import Verdict, next_doubt
from lepton_operator.worker import Phase
from lepton_trainer.protocol.messages import FAILED, RUNNING, STOPPED, SUCCEEDED

ALIVE, SUSPECTED, LOST, LEAVING, UNKNOWN = Verdict.ALIVE, Verdict.SUSPECTED, Verdict.LOST, Verdict.LEAVING, Verdict.UNKNOWN

ROWS = [
    # what happened to member 1 -> its verdict, whether it costs budget
    ("a healthy group", Team(), ALIVE, False),
    ("a process of it failed", Team(agents={1: agent(1, phase=FAILED, exits=(failed_exit(1),))}), Verdict.FAILED, True),
    ("its processes succeeded", Team(agents={1: agent(1, phase=SUCCEEDED)}), Verdict.SUCCEEDED, False),
    ("an older generation of it failed", Team(agents={1: agent(1, phase=FAILED, number=0)}), ALIVE, False),
    ("its agent was told to leave", Team(agents={1: agent(1, leaving="SIGTERM")}), LEAVING, False),
    ("its pod is being deleted", Team(workers={1: worker(1, deleting=True)}), LEAVING, False),
    (
        "its pod is being deleted, and its processes die of that",
        Team({1: worker(1, deleting=True)}, {1: agent(1, phase=FAILED)}),
        Verdict.FAILED,
        False,
    ),
    ("its deleted pod's agent is gone", Team({1: worker(1, deleting=True)}, {1: dropped(1, 0.0)}), LOST, False),
    ("it left in good order and is gone", Team(no_pod=(1,), agents={1: agent(1, phase=STOPPED)}), Verdict.STOPPED, False),
    ("its pod is gone", Team(no_pod=(1,)), LOST, False),
    ("its container ended", Team(workers={1: worker(1, phase=Phase.FAILED, exit_code=137)}), LOST, True),
    ("its container ran out of memory", Team(workers={1: worker(1, phase=Phase.FAILED, oom_killed=True)}), LOST, True),
    ("its pod was evicted", Team(workers={1: worker(1, phase=Phase.FAILED, evicted="PreemptionByScheduler")}), LOST, False),
    ("its pod ended while being deleted", Team(workers={1: worker(1, phase=Phase.FAILED, deleting=True)}), LOST, False),
    (
        "it succeeded, and its pod was collected",
        Team(no_pod=(1,), no_agent=(1,), outcomes={"pod-1": Verdict.SUCCEEDED}),
        Verdict.SUCCEEDED,
        False,
    ),
    ("another life of its agent joined", Team(extra_agents=(agent(1, boot="another", number=0),)), LOST, True),
    ("its connection was closed just now", Team(agents={1: dropped(1, 0.2)}), SUSPECTED, False),
    ("its connection was closed, and the group steps on", Team(agents={1: dropped(1, 60.0)}), SUSPECTED, False),
    (
        "its connection was closed, and a step is overdue",
        Team(agents={0: agent(0, stepped=NOW.mono - 0.6), 1: dropped(1, 0.6), 2: agent(2, stepped=NOW.mono - 0.6)}),
        LOST,
        True,
    ),
    (
        "its connection was closed, and the others' last word is older than a step",
        Team(agents={0: agent(0, ago=0.9), 1: dropped(1, 5.0), 2: agent(2, ago=0.9)}),
        SUSPECTED,
        False,
    ),
    (
        "its connection was closed, and the others' last step took a little longer than usual",
        Team(agents={0: agent(0, stepped=NOW.mono - 0.3), 1: dropped(1, 5.0), 2: agent(2, stepped=NOW.mono - 0.3)}),
        SUSPECTED,
        False,
    ),
    ("its connection was closed, and a peer failed", Team(agents={1: dropped(1, 0.16), 2: agent(2, phase=FAILED)}), LOST, True),
    (
        "its connection was closed a moment ago, and a peer failed",
        Team(agents={1: dropped(1, 0.1), 2: agent(2, phase=FAILED)}),
        SUSPECTED,
        False,
    ),
    (
        "its connection went down with the coordinator",
        Team({}, {0: agent(0, ago=5.0), 1: dropped(1, 6.0), 2: agent(2, ago=5.0)}, listening_since=NOW.mono - 5),
        SUSPECTED,
        False,
    ),
    (
        "it never came back to a restarted coordinator",
        Team(
            {},
            {0: agent(0, stepped=NOW.mono - 11), 1: dropped(1, 12.0), 2: agent(2, stepped=NOW.mono - 11)},
            listening_since=NOW.mono - 11,
        ),
        LOST,
        True,
    ),
    ("handshakes queue", Team({}, {0: agent(0, ago=5.0), 1: dropped(1, 5.0), 2: agent(2, ago=5.0)}, settled=NOW.mono), SUSPECTED, False),
    ("no member is connected", Team(agents={i: dropped(i, 60.0) for i in range(3)}), SUSPECTED, False),
    (
        "the coordinator suspects itself",
        Team({}, {1: dropped(1, 60.0), 0: agent(0, ago=60), 2: agent(2, ago=60)}, blind=True),
        SUSPECTED,
        False,
    ),
    (
        "no member is connected, and its pod failed",
        Team({1: worker(1, phase=Phase.FAILED, exit_code=1)}, {i: dropped(i, 60.0) for i in range(3)}),
        LOST,
        True,
    ),
    (
        "no member is connected, and its node is not ready",
        Team({1: worker(1, node_ready=False)}, {i: dropped(i, 60.0) for i in range(3)}),
        LOST,
        False,
    ),
    ("its node is not ready, and it speaks", Team(workers={1: worker(1, node_ready=False)}), ALIVE, False),
    (
        "its node is not ready, it speaks, and the group pauses",
        Team({1: worker(1, node_ready=False)}, {i: agent(i, stepped=NOW.mono - 9) for i in range(3)}),
        ALIVE,
        False,
    ),
    (
        "its node is not ready, and it is silent, and the group steps on",
        Team({1: worker(1, node_ready=False)}, {1: agent(1, heard=NOW.mono - 20)}),
        ALIVE,
        False,
    ),
    (
        "its node is not ready, it is silent, and the group stopped",
        Team(
            {1: worker(1, node_ready=False)},
            {0: agent(0, stepped=NOW.mono - 15), 1: agent(1, ago=15.0), 2: agent(2, stepped=NOW.mono - 15)},
        ),
        LOST,
        False,
    ),
    (
        "its node is not ready, and its connection was closed",
        Team(
            {1: worker(1, node_ready=False)},
            {0: agent(0, stepped=NOW.mono - 0.4), 1: dropped(1, 0.4), 2: agent(2, stepped=NOW.mono - 0.4)},
        ),
        LOST,
        False,
    ),
    ("it is silent, and the group steps on", Team(agents={1: agent(1, ago=3600.0)}), ALIVE, False),
    (
        "it is silent, and the group stopped a while ago",
        Team(agents={0: agent(0, stepped=NOW.mono - 11), 1: agent(1, ago=11.0), 2: agent(2, stepped=NOW.mono - 11)}),
        SUSPECTED,
        False,
    ),
    (
        "it answers no probe, and the group stopped",
        Team(agents={0: agent(0, stepped=NOW.mono - 13), 1: agent(1, ago=13.0), 2: agent(2, stepped=NOW.mono - 13)}),
        LOST,
        True,
    ),
    ("the group stopped, and everybody speaks", Team(agents={i: agent(i, stepped=NOW.mono - 3600) for i in range(3)}), ALIVE, False),
    ("a new leader has not heard of it yet", Team(no_agent=(1,), leading_since=NOW.mono - 5), UNKNOWN, False),
    (
        "a new leader has not heard of it for long, and the group steps on",
        Team(no_agent=(1,), leading_since=NOW.mono - 500),
        UNKNOWN,
        False,
    ),
    (
        "a new leader has not heard of it for long, and the group stopped",
        Team(
            no_agent=(1,),
            agents={0: agent(0, stepped=NOW.mono - 11), 2: agent(2, stepped=NOW.mono - 11)},
            leading_since=NOW.mono - 500,
        ),
        LOST,
        True,
    ),
    (
        "all connections are open, and nobody is heard",
        Team(agents={i: agent(i, ago=60.0) for i in range(3)}),
        SUSPECTED,
        False,
    ),
]


@pytest.mark.parametrize(("team", "verdict", "costs"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_member_is_judged_by_the_table_of_evidence(team: Team, verdict: Verdict, costs: bool) -> None:
    judgement = team.judge()[1]
    assert (judgement.verdict, judgement.costs) == (verdict, costs), judgement


@pytest.mark.parametrize("changed", [0, 1, 2])
def test_what_happens_to_one_member_is_no_verdict_on_the_others(changed: int) -> None:
    team = Team(no_pod=(changed,))
    assert [j.verdict for j in team.judge()] == [LOST if i == changed else ALIVE for i in range(3)]


def test_a_reconnection_ends_the_suspicion() -> None:
    assert Team(agents={1: dropped(1, 0.2)}).verdict(1) is SUSPECTED
    assert Team(agents={1: agent(1, since=NOW.mono)}).verdict(1) is ALIVE


@pytest.mark.parametrize(("age", "longest"), [(0.0, 0.05), (0.3, 0.05), (3600.0, 1.0)])
def test_a_suspicion_is_looked_at_again_soon_at_first_and_seldom_when_it_lasts(age: float, longest: float) -> None:
    wait = next_doubt(Team(agents={1: dropped(1, age)}).judge(), NOW)
    assert wait is not None and longest / 2 <= wait <= longest


def test_a_healthy_group_is_looked_at_when_its_silence_would_begin_to_mean_something() -> None:
    wait = next_doubt(Team().judge(), NOW)
    assert wait is not None and 5.0 < wait <= 10.0


def test_a_group_that_reports_no_steps_is_never_lost_by_silence_alone() -> None:
    silent = {i: agent(i, ago=3600.0, stepped=0.0, phase=RUNNING) for i in range(3)}
    assert {j.verdict for j in Team(agents=silent).judge()} == {ALIVE}
