"""The size of a group changes while it trains: by its user, by evictions, and back. None of it costs budget or a survivor."""

import json

from kube import eventually
from trainings import Training, Trainings


def evict(job: Training, pod: str) -> None:
    """Through the eviction API, as a drain does."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": job.kubectl.namespace}}
    path = f"/api/v1/namespaces/{job.kubectl.namespace}/pods/{pod}/eviction"
    job.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(body))


def whole(job: Training, world: int, timeout: float = 90) -> None:
    """Waits until the newest generation trains with `world` ranks."""

    def trains() -> bool:
        ledger = job.ledger()
        newest = ledger.generations[max(ledger.generations)]
        return len(newest) == world == newest[0][0]["world"] and all(len(lines) > 3 for lines in newest.values())

    eventually(trains, timeout)


def test_kubectl_scale_up_and_down_while_training(trainings: Trainings) -> None:
    job = trainings.group("scale")
    job.steps_in_generation(1, 120)
    before = job.agents()
    job.kubectl("scale", f"ltj/{job.name}", "--replicas=3")
    whole(job, 3)
    assert {index: job.agents()[index] for index in before} == before
    job.kubectl("scale", f"ltj/{job.name}", "--replicas=2")
    whole(job, 2)
    eventually(lambda: job.agents() == before, 60)
    assert job.kubectl.get("ltj", job.name, "--subresource=scale")["status"]["replicas"] == 2
    status = job.complete()
    assert status["restarts"]["total"] == 0
    assert [entry["reason"] for entry in status["history"]] == ["FirstGroup", "Grown", "ScaledDown"]
    assert job.ledger().worlds() == [2, 3, 2]
    assert status["goodput"]["recomputedSteps"] == 0, "the script can stop: nothing is made twice"


def test_evictions_and_scaling_leave_the_budget_alone(trainings: Trainings) -> None:
    """B12: what the controller or a drain deletes is no failure, and no second wave of pods follows."""
    job = trainings.group("budget", replicas=3, recovery={"maxRestarts": 1})
    job.steps_in_generation(1, 120)
    before = job.agents()
    for victim in (2, 0):
        pods = {pod["metadata"]["labels"]["training.lepton.ai/worker-index"]: pod["metadata"] for pod in job.pods(ended=False)}
        evict(job, pods[str(victim)]["name"])
        eventually(lambda gone=pods[str(victim)]["uid"], index=victim: job.agents().get(index, (gone,))[0] != gone, 60)
        whole(job, 3)
        assert job.agents()[1] == before[1]
        job.kubectl("scale", f"ltj/{job.name}", "--replicas=2")
        whole(job, 2)
        job.kubectl("scale", f"ltj/{job.name}", "--replicas=3")
        whole(job, 3)
        assert job.agents()[1] == before[1]
    status = job.complete()
    assert status["restarts"].get("recent", []) == []
    assert "lastFailure" not in status
