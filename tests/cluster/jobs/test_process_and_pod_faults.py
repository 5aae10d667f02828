"""What dies under a training group: processes, agents, pods. Each time the job goes on and ends well, no committed step is lost or made
twice, whoever lives keeps pod and agent, and the status tells the true cause."""

import signal
from typing import Any

import host_processes
from kube import Object, eventually
from trainings import Training, Trainings


def replaced(job: Training, index: int, before: dict[int, tuple[str, str]]) -> bool:
    """Whether another pod runs for `index`."""
    now = job.agents().get(index)
    return now is not None and now[0] != before[index][0] and bool(now[1])


def only_one_pod_per_worker(job: Training, replicas: int) -> None:
    indices = [int(pod["metadata"]["labels"]["training.lepton.ai/worker-index"]) for pod in job.pods(ended=False)]
    assert sorted(indices) == list(range(replicas)), indices


def recovery_is_told(job: Training, status: Object) -> None:
    """The recovery is an event, and the steps made again are those of the ledger."""
    notes = [event["note"] for event in job.events() if event["reason"] == "Recovered"]
    assert notes and "stepped" in notes[0]
    goodput = status["goodput"]
    assert goodput["recoveries"] >= 1
    # The ledger knows a step from its beginning, the operator once it was made: one for each generation may lie between.
    ledger = job.ledger()
    assert 0 <= ledger.recomputed() - goodput["recomputedSteps"] < len(ledger.generations), (goodput, ledger.starts())


def test_a_process_that_dies_costs_a_generation_and_no_pod(trainings: Trainings) -> None:
    job = trainings.group("ranks")
    ledger = job.steps_in_generation(1, 120)
    before = job.agents()
    faults: list[tuple[str, int, dict[str, Any], str]] = [
        ("KILL", 1, {"signal": 9, "rank": 1, "reason": "ProcessSignalled"}, "SIGKILL"),
        ("KILL", 0, {"signal": 9, "rank": 0, "reason": "ProcessSignalled"}, "SIGKILL"),
        ("SEGV", 1, {"signal": 11, "rank": 1, "reason": "ProcessSignalled"}, "SIGSEGV"),
        ("raise", 0, {"exitCode": 1, "rank": 0, "reason": "ProcessFailed"}, "ValueError: this batch is bad (group.py:"),
    ]
    for number, (what, rank, wanted, sentence) in enumerate(faults, start=1):
        generation = max(ledger.generations)
        if what == "raise":
            job.tell(f"fail-{rank}")
        else:
            start = ledger.rank(rank)
            job.kubectl("exec", start["worker"], "-c", "trainer", "--", "sh", "-c", f"kill -{what} {start['pid']}")
        ledger = job.steps_in_generation(generation + 1)
        failure = job.status()["lastFailure"]
        assert {key: failure.get(key) for key in wanted} == wanted, failure
        assert sentence in failure["message"] and f"worker {rank}" in failure["message"], failure["message"]
        assert failure["worker"] in failure["message"] and "kubectl logs" in failure["message"]
        assert job.status()["restarts"]["process"] == number
        assert job.agents() == before
    status = job.complete()
    assert status["restarts"]["pod"] == 0
    assert 'raise ValueError("this batch is bad")' in status["lastFailure"]["logTail"]
    recovery_is_told(job, status)


def test_an_agent_that_is_killed_takes_its_processes_along_and_is_replaced(trainings: Trainings) -> None:
    job = trainings.group("agent")
    job.steps_in_generation(1, 120)
    before = job.agents()
    victim = before[1][0]
    assert len(host_processes.pids_of_pod(victim, "python")) >= 2
    host_processes.send(host_processes.agent_of_pod(victim), signal.SIGKILL)
    eventually(lambda: host_processes.pids_of_pod(victim, "python") == [], 10)
    job.steps_in_generation(2)
    failure = job.status()["lastFailure"]
    assert "worker 1" in failure["message"] and "was lost" in failure["message"], failure
    eventually(lambda: replaced(job, 1, before), 60)
    assert job.agents()[0] == before[0]
    only_one_pod_per_worker(job, 2)
    status = job.complete()
    assert status["restarts"]["pod"] == 1 and status["restarts"]["process"] == 0
    recovery_is_told(job, status)


def test_worker_0_deleted_is_replaced_while_the_others_train_on(trainings: Trainings) -> None:
    job = trainings.group("first", replicas=3)
    job.steps_in_generation(1, 120)
    before = job.agents()
    job.kubectl("delete", "pod", job.pods()[0]["metadata"]["name"], "--wait=false")
    job.steps_in_generation(2)
    eventually(lambda: replaced(job, 0, before), 60)
    eventually(lambda: job.ledger().worlds()[-1] == 3, 90)
    assert {index: job.agents()[index] for index in (1, 2)} == {index: before[index] for index in (1, 2)}
    only_one_pod_per_worker(job, 3)
    status = job.complete()
    assert status["restarts"].get("recent", []) == [], "deleting a pod costs no budget"
    assert [entry["reason"] for entry in status["history"]] in (
        ["FirstGroup", "WorkerLeaving", "Grown"],
        ["FirstGroup", "WorkerLost", "Grown"],
    )
    assert job.ledger().worlds() == [3, 2, 3]


def test_two_pods_deleted_at_once_without_a_grace(trainings: Trainings) -> None:
    job = trainings.group("two", replicas=3)
    job.steps_in_generation(1, 120)
    before = job.agents()
    names = [pod["metadata"]["name"] for pod in job.pods()[:2]]
    job.kubectl("delete", "pod", *names, "--grace-period=0", "--force", "--wait=false")
    job.steps_in_generation(2)
    eventually(lambda: replaced(job, 0, before) and replaced(job, 1, before), 60)
    eventually(lambda: job.ledger().worlds()[-1] == 3, 90)
    assert job.agents()[2] == before[2]
    only_one_pod_per_worker(job, 3)
    status = job.complete()
    assert status["restarts"].get("recent", []) == [], "deleting pods costs no budget"
    assert "WorkerLost" in [entry["reason"] for entry in status["history"]]
