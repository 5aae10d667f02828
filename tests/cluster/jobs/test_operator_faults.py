"""The operator dies, hangs, is away or cut off: groups train on in the same processes, and whoever leads next goes on from there."""

import signal
import time
from contextlib import ExitStack

import host_processes
from installation import Installation
from kube import Kubectl, eventually
from trainings import Ledger, Training, Trainings

COORDINATOR_PORT = 7443


def processes(ledger: Ledger) -> dict[int, tuple[str, int]]:
    """Rank -> pod and pid of the newest generation."""
    newest = ledger.generations[max(ledger.generations)]
    return {rank: (lines[0]["worker"], lines[0]["pid"]) for rank, lines in newest.items()}


def undisturbed(job: Training, before: Ledger) -> None:
    """The group steps on in the generation and with the processes that it had before."""
    job.steps_on()
    after = job.ledger()
    assert sorted(after.generations) == sorted(before.generations), "a new generation was made"
    assert processes(after) == processes(before)


def heals(job: Training, replicas: int) -> None:
    """Whoever leads now mends a killed rank, with the pods that are there."""
    agents, generation = job.agents(), max(job.ledger().generations)
    assert sorted(agents) == list(range(replicas))
    job.kill_rank(replicas - 1)
    job.steps_in_generation(generation + 1)
    assert job.agents() == agents
    assert job.status()["lastFailure"]["signal"] == 9


def test_the_leader_is_killed_and_the_next_one_goes_on_within_15_s(operator: Installation, trainings: Trainings) -> None:
    job = trainings.group("killed")
    before = job.steps_in_generation(1, 120)
    holder, pid = operator.leader(), operator.leader_pid()
    began = time.monotonic()
    host_processes.send(pid, signal.SIGKILL)
    eventually(lambda: operator.leader() not in ("", holder), 15)
    took = time.monotonic() - began
    undisturbed(job, before)
    heals(job, 2)
    status = job.complete()
    assert status["restarts"]["total"] == 1 and took < 15
    operator.ready()


def test_the_leader_is_told_to_go_and_the_next_one_leads_within_2_s(operator: Installation, trainings: Trainings) -> None:
    job = trainings.group("told")
    before = job.steps_in_generation(1, 120)
    holder, pid = operator.leader(), operator.leader_pid()
    began = time.monotonic()
    host_processes.send(pid, signal.SIGTERM)
    eventually(lambda: operator.leader() not in ("", holder), 10, interval=0.02)
    took = time.monotonic() - began
    undisturbed(job, before)
    heals(job, 2)
    job.complete()
    operator.ready()
    assert took <= 2, f"the next leader came after {took:.1f} s"


def test_a_leader_that_was_stopped_and_wakes_up_does_no_harm(operator: Installation, trainings: Trainings) -> None:
    job = trainings.group("asleep")
    before = job.steps_in_generation(1, 120)
    holder, pod = operator.leader(), operator.leader_pod()
    stopped = host_processes.pids_of_pod(pod["metadata"]["uid"], "lepton_operator") + host_processes.pids_of_pod(
        pod["metadata"]["uid"], "lepton-operator"
    )
    for pid in stopped:
        host_processes.send(pid, signal.SIGSTOP)
    try:
        eventually(lambda: operator.leader() not in ("", holder), 20)
        new = operator.leader()
        undisturbed(job, before)
        job.kill_rank(0)
        healed = job.steps_in_generation(2)
    finally:
        for pid in stopped:
            host_processes.send(pid, signal.SIGCONT)
    undisturbed(job, healed)
    assert operator.leader() == new
    status = job.complete()
    assert status["rendezvous"]["generation"] == 2
    assert status["restarts"]["total"] == 1
    operator.ready()


def test_killed_while_it_makes_workers_it_neither_loses_nor_doubles_one(operator: Installation, trainings: Trainings) -> None:
    script = "import os, time\nwhile not os.path.exists('/tmp/go'): time.sleep(0.1)"
    jobs = [trainings.plain(f"made-{number}", script, replicas=3) for number in range(2)]
    eventually(lambda: any(job.pods() for job in jobs), 20, interval=0.01)
    host_processes.send(operator.leader_pid(), signal.SIGKILL)
    for job in jobs:
        eventually(lambda job=job: job.status().get("state") == "Running", 90)
        indices = [int(pod["metadata"]["labels"]["training.lepton.ai/worker-index"]) for pod in job.pods()]
        assert indices == [0, 1, 2], "every pod that was ever made lives, and each index has one"
        for pod in job.pods():
            job.kubectl("exec", pod["metadata"]["name"], "-c", "trainer", "--", "touch", "/tmp/go")
    for job in jobs:
        assert job.wait("Finished")["state"] == "Complete"
        assert job.status()["restarts"]["total"] == 0
    operator.ready()


def test_while_the_operator_is_away_jobs_train_on_and_may_be_deleted_or_orphaned(operator: Installation, trainings: Trainings) -> None:
    kept, deleted, orphaned = (trainings.group(name, replicas=replicas) for name, replicas in (("kept", 2), ("gone", 1), ("orphan", 1)))
    before = {job.name: job.steps_in_generation(1, 150) for job in (kept, deleted, orphaned)}
    pods = orphaned.agents()
    operator.scale(0)
    try:
        undisturbed(kept, before[kept.name])
        kept.kubectl("delete", "ltj", deleted.name, "--timeout=30s", timeout=40)
        eventually(lambda: deleted.pods() == [], 60)
        kept.kubectl("delete", "ltj", orphaned.name, "--cascade=orphan", "--timeout=30s", timeout=40)
        undisturbed(kept, before[kept.name])
    finally:
        operator.scale(2)
    undisturbed(kept, before[kept.name])
    undisturbed(orphaned, before[orphaned.name])
    heals(kept, 2)
    kept.complete()
    orphaned.tell("finish")
    eventually(lambda: orphaned.agents() == {}, 120)
    ended = orphaned.pods()
    assert [(pod["metadata"]["uid"], pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]) for pod in ended] == [
        (pods[0][0], 0)
    ]
    orphaned.ledger().check_committed_once()
    kept.kubectl("delete", "pod", ended[0]["metadata"]["name"], "--wait=false")


def last_word(job: Training, pod: str) -> str:
    """Of its agent."""
    said = [line for line in job.logs(pod).splitlines() if line.startswith("[lepton] ")]
    return said[-1].removeprefix("[lepton] ") if said else ""


def test_connections_cut_between_agents_and_coordinator_disturb_no_training(trainings: Trainings) -> None:
    job = trainings.group("cut")
    before = job.steps_in_generation(1, 120)
    uids = [uid for uid, _ in job.agents().values()]
    with host_processes.connections_cut(uids[1], COORDINATOR_PORT):
        job.steps_on(by=50)  # a while in which the other one is connected and shows that the group goes on
    undisturbed(job, before)
    with ExitStack() as cuts:
        for uid in uids:
            cuts.enter_context(host_processes.connections_cut(uid, COORDINATOR_PORT))
        job.steps_on(by=50)
    undisturbed(job, before)
    assert job.status()["restarts"]["total"] == 0
    eventually(lambda: all(last_word(job, pod["metadata"]["name"]) == "the coordinator is back" for pod in job.pods()), 60)
    heals(job, 2)
    status = job.complete()
    assert status["restarts"]["total"] == 1 and status["lastFailure"]["signal"] == 9


def test_a_second_installation_leaves_claimed_jobs_alone(operator: Installation, trainings: Trainings) -> None:
    job = trainings.group("claimed")
    before = job.steps_in_generation(1, 120)
    other = Installation(operator.kubeconfig, f"{operator.namespace}-2", operator.images, (trainings.namespace,), release="second-lepton")
    try:
        other.install()
        eventually(lambda: any("ClaimedByAnother" in line for line in other.log().splitlines()), 30)
        undisturbed(job, before)
        heals(job, 2)
        status = job.complete()
        assert status["manager"] == operator.manager
        told = [event for event in job.events() if event["reason"] == "ClaimedByAnother"]
        assert len(told) == 1 and operator.manager in told[0]["note"]
    finally:
        other.helm("uninstall", other.release, "--ignore-not-found")
        Kubectl(operator.kubeconfig).run("delete", "namespace", other.namespace, "--wait=false")
