"""A training that only steps and reports, for tests that look at the operator around it and not at the training."""

import textwrap
from pathlib import Path

from kube import Kubectl, Object
from trainings import API_VERSION, Training

SCRIPT = textwrap.dedent(
    """
    import os, time
    import torch, torch.distributed as dist
    from lepton_trainer.report import report
    dist.init_process_group("gloo")
    steps = int(os.environ["STEPS"])
    for step in range(1, steps + 1):
        dist.all_reduce(torch.ones(1))
        report(step=step, loss=1 / step, samples=8, total_steps=steps)
        time.sleep(0.1)
    """
)


def train(kubeconfig: Path, namespace: str, name: str, steps: int) -> Training:
    kubectl = Kubectl(kubeconfig, namespace)
    trainer = {"command": ["python", "train.py"], "code": {"configMap": name}, "env": [{"name": "STEPS", "value": str(steps)}]}
    script: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"train.py": SCRIPT}}
    job: Object = {
        "apiVersion": API_VERSION,
        "kind": "LeptonTrainingJob",
        "metadata": {"name": name},
        "spec": {"trainer": trainer, "workers": {"replicas": 2}},
    }
    kubectl.apply(script, job)
    return Training(kubectl, name)


def step(job: Training) -> int:
    return int((job.status().get("progress") or {}).get("step") or 0)


def is_complete(job: Training) -> bool:
    assert job.status().get("state") != "Failed", job.status().get("message")
    return job.condition("Complete").get("status") == "True"


def undisturbed(job: Training) -> tuple[int, int]:
    """(restarts, number of the generation)."""
    status = job.status()
    return (status.get("restarts") or {}).get("total", 0), status["rendezvous"]["generation"]
