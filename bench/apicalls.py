"""What jobs cost the API server: writes of one 8-pod job from apply to Finished; how fast 100 jobs of 8 pods exist, beside a bare client.

    PYTHONPATH=.:operator:trainer_image:tests python bench/apicalls.py

Needs `make cluster-up`. Writes are counted in the API server's audit log, by who made them; Lease and progress are told apart.
The hundred jobs are for fake nodes (kwok): their pods are scheduled, and run on paper. The bare client creates 800 pods
of the same content with 32 requests in flight and nothing else to do, in turns, in the same run; and 800 of the smallest pods that can be.
The operator does it in the cluster, at its default rate limit.
A rate is that of the audit log: from the first request received to the last pod created.
"""

import argparse
import asyncio
import subprocess
import sys
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

from bench.audit import AuditLog, Write
from bench.figures import save, summary
from bench.machine import facts
from cluster import images, substrate
from cluster.places import AUDIT_LOG
from installation import Installation
from kube import Kubectl, eventually
from lepton_operator.pods.api import Api, load_configuration

JOBS = "/apis/training.lepton.ai/v1alpha1/namespaces/{}/leptontrainingjobs"
PODS = "/api/v1/namespaces/{}/pods"
IN_FLIGHT = 32
Json = dict[str, Any]
SCRIPT = """
import os, time
from lepton_trainer.report import report
for step in range(1, 41):
    time.sleep(0.25)
    report(step=step, loss=1 / step, samples=8, total_steps=40)
"""


def job(name: str, replicas: int, **spec: Any) -> Json:
    workers = {"replicas": replicas, **spec}
    trainer = {"command": ["python", "train.py"], "code": {"configMap": "script"}, "env": [{"name": "LEPTON_WARM_START", "value": "0"}]}
    kind = {"apiVersion": "training.lepton.ai/v1alpha1", "kind": "LeptonTrainingJob", "metadata": {"name": name}}
    return {**kind, "spec": {"trainer": trainer, "workers": workers}}


def on_paper() -> Json:
    """A template that puts the pod on a fake node."""
    toleration = {"key": "kwok.x-k8s.io/node", "operator": "Equal", "value": "fake"}
    return {"spec": {"nodeSelector": {"type": "kwok"}, "tolerations": [toleration]}}


def smallest_pod() -> Json:
    spec = {**on_paper()["spec"], "containers": [{"name": "trainer", "image": "none"}], "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {}, "spec": spec}


async def same_pod(api: Api, kubectl: Kubectl, namespace: str) -> Json:
    """A pod as the operator makes it for a job on paper, but nobody's: what it costs the API server, it costs it from any client."""
    await api.request("create", "leptontrainingjobs", JOBS.format(namespace), body=job("sample", 1, template=on_paper()))
    eventually(lambda: _count(kubectl) == 1, 60)
    pod: Json = kubectl.get("pods")["items"][0]
    kubectl("delete", "ltj", "sample", "--wait=true", timeout=60)
    eventually(lambda: _count(kubectl) == 0, 60)
    labels = {name.replace("training.lepton.ai/", "bare.example/"): value for name, value in pod["metadata"]["labels"].items()}
    spec = {field: value for field, value in pod["spec"].items() if field not in ("nodeName", "serviceAccount")}
    # What an admission plugin adds is added anew.
    spec["volumes"] = [volume for volume in spec.get("volumes", ()) if not volume["name"].startswith("kube-api-access")]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": labels, "annotations": pod["metadata"]["annotations"]}, "spec": spec}


async def one_job(api: Api, kubectl: Kubectl, namespace: str, operator: str) -> Json:
    """Every write in the namespace while one job of 8 pods runs from apply to Finished, by who and what."""
    audit = AuditLog(AUDIT_LOG)
    await api.request("create", "leptontrainingjobs", JOBS.format(namespace), body=job("one", 8))
    kubectl("wait", "--for=condition=Finished", "ltj/one", "--timeout=300s", timeout=320)
    done = [write for write in audit.writes(namespace) if write.code < 400]
    status = kubectl.get("ltj", "one")["status"]
    ours = [write for write in done if write.user == operator]
    progress = max(0, sum(1 for w in ours if w.resource == "leptontrainingjobs/status") - _decisions(status))
    others = Counter(f"{_who(w)} {w.verb} {w.resource}" for w in done if w.user != operator)
    return {
        "operator": dict(Counter(f"{w.verb} {w.resource}" for w in ours)),
        "operator_total": len(ours),
        "of_it_progress": progress,
        "operator_without_progress": len(ours) - progress,
        "goal": 8 + 10,
        "others": dict(others.most_common()),
        "others_total": sum(others.values()),
        "state": status["state"],
    }


def _decisions(status: Json) -> int:
    """Status writes that decided something: accepted, each generation, running, complete, finished."""
    return 4 + int(status["rendezvous"]["generation"])


def _who(write: Write) -> str:
    return write.user.removeprefix("system:serviceaccount:").removeprefix("system:")


async def hundred_jobs(api: Api, kubectl: Kubectl, namespace: str, jobs: int, size: int) -> float:
    """Pods a second, from the first apply until the last pod exists."""
    audit = AuditLog(AUDIT_LOG)
    await _all(
        api.request("create", "leptontrainingjobs", JOBS.format(namespace), body=job(f"j{n}", size, template=on_paper()))
        for n in range(jobs)
    )
    rate = await _rate(audit, namespace, jobs * size)
    kubectl("delete", "ltj", "--all", "--wait=false", timeout=120)
    eventually(lambda: _count(kubectl) == 0, 300, interval=0.5)
    return rate


async def bare(api: Api, kubectl: Kubectl, namespace: str, pods: int, template: Json) -> float:
    """Pods a second of a client that does nothing else."""
    audit = AuditLog(AUDIT_LOG)
    bodies = ({**template, "metadata": {**template["metadata"], "name": f"bare-{n}"}} for n in range(pods))
    await _all(api.request("create", "pods", PODS.format(namespace), body=body) for body in bodies)
    rate = await _rate(audit, namespace, pods)
    kubectl("delete", "pods", "--all", "--wait=false", "--grace-period=0", "--force", timeout=120)
    eventually(lambda: _count(kubectl) == 0, 300, interval=0.5)
    return rate


async def _rate(audit: AuditLog, namespace: str, pods: int) -> float:
    """`pods` over the seconds from the first request to the answer of the last creation, by the audit log: nobody asks the API server
    meanwhile how far it is, for on two cores that costs more than what is measured."""
    deadline = time.monotonic() + 300
    while True:
        writes = [write for write in audit.writes(namespace) if write.verb == "create" and write.code < 400]
        made = [write for write in writes if write.resource == "pods"]
        if len(made) >= pods:
            return pods / (max(write.answered for write in made) - min(write.received for write in writes))
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(made)} of {pods} pods exist after 300 s")
        await asyncio.sleep(4.0)


async def _all(requests: Any) -> None:
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def one(request: Any) -> None:
        async with gate:
            await request

    await asyncio.gather(*(one(request) for request in requests))


def _count(kubectl: Kubectl) -> int:
    return len(kubectl("get", "pods", "-o", "name").split())


async def run(jobs: int, size: int, turns: int, nodes: int, output: Path | None) -> None:
    kubectl = Kubectl(substrate.kubeconfig())
    suffix = uuid.uuid4().hex[:6]
    namespace, system = f"bench-{suffix}", f"bench-{suffix}-system"
    installation = Installation(substrate.kubeconfig(), system, images.load(), watched=(namespace,))
    kubectl("create", "namespace", namespace)
    about = facts()
    fleet = [sys.executable, "-m", "cluster", "nodes", "--fake"]
    await asyncio.to_thread(subprocess.run, [*fleet, str(nodes)], check=True)
    try:
        installation.install()
        inside = Kubectl(substrate.kubeconfig(), namespace)
        inside.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "script"}, "data": {"train.py": SCRIPT}})
        api = Api(await load_configuration(str(substrate.kubeconfig())), qps=5000, burst=5000)
        account = f"system:serviceaccount:{system}:{installation.release}"
        calls = await one_job(api, inside, namespace, account)
        inside("delete", "ltj", "--all", "--wait=true")
        eventually(lambda: _count(inside) == 0, 120)
        rates: dict[str, list[float]] = {"smallest": [], "bare": [], "operator": []}
        pod = await same_pod(api, inside, namespace)
        for turn in range(turns):
            rates["smallest"].append(await bare(api, inside, namespace, jobs * size, smallest_pod()))
            rates["bare"].append(await bare(api, inside, namespace, jobs * size, pod))
            rates["operator"].append(await hundred_jobs(api, inside, namespace, jobs, size))
            print(f"{turn + 1}: bare {rates['bare'][-1]:.0f} pods/s, operator {rates['operator'][-1]:.0f} pods/s", file=sys.stderr)
        await api.close()
    finally:
        installation.uninstall()
        kubectl("delete", "namespace", namespace, system, "--wait=false")
        await asyncio.to_thread(subprocess.run, [*fleet, "0"], check=True)
    ratios = [ours / theirs for ours, theirs in zip(rates["operator"], rates["bare"], strict=True)]
    fleet_result = {
        "jobs": jobs,
        "pods_each": size,
        "pods_per_second": {side: summary(values) for side, values in rates.items()},
        "operator_of_bare": summary(ratios),
        "runs": rates,
    }
    print(f"one job of 8 pods: {calls['operator_without_progress']} writes, {calls['of_it_progress']} of progress beside them")
    print(f"   {calls['operator']}\n   the cluster's own controllers: {calls['others_total']}: {calls['others']}")
    print(f"{jobs} jobs of {size}: {fleet_result['pods_per_second']}; of the bare client's rate: {fleet_result['operator_of_bare']}")
    print(save("apicalls", {"about": about, "method": __doc__, "one_job": calls, "hundred_jobs": fleet_result}, output))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=8)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    asyncio.run(run(options.jobs, options.size, options.turns, options.nodes, options.output))
