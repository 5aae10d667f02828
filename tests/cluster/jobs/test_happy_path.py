"""From `kubectl apply` to a trained network: what a user sees on the way, what lies in the cluster, and what Prometheus says."""

import re

from cluster import prometheus
from kube import eventually
from trainings import CLAIM, SCRIPTS, Training, Trainings

GENERATED = "training.lepton.ai"


def row(job: Training) -> dict[str, str]:
    """Column -> text of `kubectl get ltj NAME`, cut where the header's columns begin."""
    header, line = job.kubectl("get", "ltj", job.name).splitlines()
    starts = [match.start() for match in re.finditer(r"\S+", header)]
    return {header[a:b].strip(): line[a:b].strip() for a, b in zip(starts, [*starts[1:], None], strict=True)}


def test_digits_is_trained_and_shown(trainings: Trainings) -> None:
    job = trainings.start(
        "digits",
        {
            "trainer": {
                "command": ["python", "digits.py"],
                "code": {"configMap": SCRIPTS},
                # One thread each: the workers share this machine's cores.
                "env": [{"name": "EPOCHS", "value": "30"}, {"name": "OMP_NUM_THREADS", "value": "1"}],
            },
            "workers": {"replicas": 2, "minReplicas": 1},
            "checkpoint": {"claimName": CLAIM, "path": "digits"},
        },
    )
    rows: list[dict[str, str]] = []
    pods = eventually(lambda: len(found := job.pods()) == 2 and found, 30)
    assert "finalizers" not in job.body()["metadata"]
    for index, pod in enumerate(pods):
        meta = pod["metadata"]
        assert re.fullmatch(rf"{job.name}-{index}-[a-z0-9]{{5}}", meta["name"])
        assert meta["labels"] == {
            f"{GENERATED}/job-name": job.name,
            f"{GENERATED}/job-uid": job.body()["metadata"]["uid"],
            f"{GENERATED}/worker-index": str(index),
            "app.kubernetes.io/name": "lepton-training-job",
            "app.kubernetes.io/instance": job.name,
            "app.kubernetes.io/component": "worker",
            "app.kubernetes.io/managed-by": "lepton-operator",
        }
        (owner,) = meta["ownerReferences"]
        assert owner["kind"] == "LeptonTrainingJob" and owner["controller"] is True and "blockOwnerDeletion" not in owner
        assert "finalizers" not in meta
        assert "initContainers" not in pod["spec"], "our own image brings the agent"
    assert job.condition("Accepted")["status"] == "True"
    for kind in ("PodsReady", "Running", "Progressing"):
        eventually(lambda kind=kind: rows.append(row(job)) or job.condition(kind).get("status") == "True", 120)
    assert job.kubectl.run("get", "service", job.name).returncode != 0, "nobody asked for names"
    eventually(lambda: rows.append(row(job)) or job.condition("Finished").get("status") == "True", 240, interval=0.5)
    status = job.wait("Finished")
    assert status["state"] == "Complete" and status["reason"] == "Completed"
    truth = {condition["type"]: condition["status"] for condition in status["conditions"]}
    assert truth["Complete"] == truth["Finished"] == "True" and truth["Running"] == truth["Progressing"] == "False"
    assert "Failed" not in truth or truth["Failed"] == "False"
    assert status["progress"]["step"] == status["progress"]["totalSteps"] == 30 * 15 and status["progress"]["percent"] == "100%"
    assert status["workers"]["succeeded"] == 2 and status["restarts"]["total"] == 0
    assert status["startTime"] <= status["completionTime"]
    assert status["startup"]["podsSeconds"] <= status["startup"]["joinedSeconds"] <= status["startup"]["firstStepSeconds"]
    assert 0 < float(status["goodput"]["ratio"]) <= 1

    log = job.logs(pods[0]["metadata"]["name"])
    assert "Traceback" not in log and "Exception in callback" not in log
    assert all(line.startswith(("[rank 0] ", "[lepton] ")) for line in log.splitlines() if line), log
    accuracy = float(re.findall(r"held-out accuracy ([0-9.]+)", log)[0])
    assert accuracy >= 0.97
    last = float(re.findall(r"step 450 epoch 30 loss ([0-9.]+)", log)[0])
    assert abs(float(status["progress"]["loss"]) - last) <= 1e-4 + last * 1e-3

    steps = [int(shown["STEP"]) for shown in rows if shown["STEP"]]
    assert steps == sorted(steps) and len(set(steps)) >= 3, rows
    assert {"Starting", "Running", "Complete"} <= {shown["STATE"] for shown in rows}
    moving = [shown for shown in rows if shown["STATE"] == "Running" and shown["STEP"]]
    assert any(at["THROUGHPUT"].endswith("samples/s") and at["ETA"] and at["PROGRESS"].endswith("%") for at in moving), rows
    assert len({at["LOSS"] for at in moving}) >= 2

    reasons = [event["reason"] for event in job.events()]
    assert reasons.count("FirstGroup") == 1 and reasons.count("Completed") == 1
    assert all(event["type"] == "Normal" for event in job.events())


def test_the_loss_in_prometheus_is_the_scripts_own_at_the_same_step(trainings: Trainings) -> None:
    server = prometheus.start()
    job = trainings.group("metrics")
    job.steps_in_generation(1, 120)
    matching = f'{{namespace="{trainings.namespace}",job_name="{job.name}"'
    seen: dict[int, float] = {}

    def scraped() -> bool:
        # Both of one answer: from the same scrape, and so from the same step.
        found = {
            labels["__name__"]: value
            for labels, value in server.query(f'{{__name__=~"lepton_train_(loss|step)",{matching[1:]},worker="0"}}')
        }
        if len(found) == 2:
            seen[int(found["lepton_train_step"])] = found["lepton_train_loss"]
        return len(seen) >= 3

    eventually(scraped, 60, interval=0.5)
    printed = {int(step): float(loss) for step, loss in re.findall(r"step (\d+) loss (\S+)", job.logs(job.pods()[0]["metadata"]["name"]))}
    assert seen == {step: printed[step] for step in seen}

    def value(promql: str) -> float:
        result = server.query(promql)
        return result[0][1] if result else -1.0

    eventually(lambda: value(f"lepton_job_loss{matching}}}") > 0, 30)
    eventually(lambda: value(f'lepton_job_workers{matching},state="ready"}}') == 2, 30)
    eventually(lambda: value(f"rate(lepton_job_samples_total{matching}}}[10s])") > 0, 30)
    status = job.complete()
    # Each committed step once: what the operator counted is what the ledger holds.
    eventually(lambda: value(f"lepton_job_steps_total{matching}}}") == job.ledger().final, 30)
    assert status["goodput"]["recomputedSteps"] == 0
    job.kubectl("delete", "ltj", job.name, "--timeout=30s")
    eventually(lambda: value(f"lepton_job_steps_total{matching}}}") == -1.0, 30)
