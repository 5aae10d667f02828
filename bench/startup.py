"""From apply to the first optimiser step: a job of two workers, and the same two workers as bare pods with stock torchrun, in turns.

    PYTHONPATH=.:operator:trainer_image:tests python bench/startup.py --number 20

Needs `make cluster-up`. Both run the same script in the same image; both are created by the same client with one request for each object.
The operator is installed by Helm, in the cluster, under its own service account. Phases, in seconds since the first request:
created (all pods are), started (all containers are), joined (ours: the first generation is formed), main (the script's first line),
imported, group (init_process_group is through), step (the first optimiser step of the slower rank).
"""

import argparse
import asyncio
import json
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from bench.audit import AuditLog
from bench.figures import save, summary, table
from bench.machine import facts
from cluster import images, substrate
from cluster.places import AUDIT_LOG
from installation import Installation
from kube import Kubectl, eventually
from lepton_operator.job import parse_time
from lepton_operator.pods.api import Api, load_configuration

JOBS = "/apis/training.lepton.ai/v1alpha1/namespaces/{}/leptontrainingjobs"
CORE = "/api/v1/namespaces/{}/{}"
PHASES = ("created", "started", "joined", "main", "imported", "group", "step")
WORKERS = 2
STOCK = Path(__file__).parent / "scripts" / "stock.py"
SCRIPT = """
import time
main = time.time()
import json, os
import torch, torch.distributed as dist
imported = time.time()
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 10))
group = time.time()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model(torch.randn(32, 64)).sum().backward()
optimizer.step()
step = time.time()
ticks = int(open("/proc/1/stat").read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
print("TIMES " + json.dumps(dict(started=boot + ticks, main=main, imported=imported, group=group, step=step)), flush=True)
dist.barrier()
"""
Json = dict[str, Any]


def job(name: str) -> Json:
    return {
        "apiVersion": "training.lepton.ai/v1alpha1",
        "kind": "LeptonTrainingJob",
        "metadata": {"name": name},
        "spec": {"trainer": {"command": ["python", "train.py"], "code": {"configMap": "script"}}, "workers": {"replicas": WORKERS}},
    }


def bare_pod(name: str, index: int, image: str) -> Json:
    """What a user without an operator writes: stock torchrun with the c10d rendezvous in pod 0, names by a headless Service."""
    rendezvous = f"--rdzv-endpoint={name}-0.{name}:29400"
    # Without its own address torchrun tells the others its short host name, which they cannot resolve.
    torchrun = [
        "--local-addr=$(POD_IP)",
        f"--nnodes={WORKERS}",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        rendezvous,
        f"--rdzv-id={name}",
        "train.py",
    ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"{name}-{index}", "labels": {"bare": name}},
        "spec": {
            "restartPolicy": "Never",
            "hostname": f"{name}-{index}",
            "subdomain": name,
            "containers": [
                {
                    "name": "trainer",
                    "image": image,
                    "command": ["python3", "stock.py", *torchrun],
                    "workingDir": "/workspace",
                    "env": [
                        {"name": "HOME", "value": "/tmp"},
                        {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    ],
                    "volumeMounts": [{"name": "code", "mountPath": "/workspace"}],
                }
            ],
            "volumes": [{"name": "code", "configMap": {"name": "script"}}],
            "terminationGracePeriodSeconds": 1,
        },
    }


def bare_service(name: str) -> Json:
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"bare": name}}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


class Bench:
    def __init__(self, api: Api, kubectl: Kubectl, namespace: str, image: str) -> None:
        self._api, self._kubectl, self._namespace, self._image = api, kubectl, namespace, image

    async def ours(self, name: str) -> dict[str, float]:
        audit = AuditLog(AUDIT_LOG)
        begin = time.time()
        await self._api.request("create", "leptontrainingjobs", JOBS.format(self._namespace), body=job(name))
        answered = time.time()
        times = self._times(lambda: self._pods(f"training.lepton.ai/job-name={name}"))
        status = self._kubectl.get("ltj", name)["status"]
        creations = [w for w in audit.writes(self._namespace) if w.resource == "pods" and w.verb == "create"]
        self._kubectl("delete", "ltj", name, "--wait=true")
        eventually(lambda: not self._pods(f"training.lepton.ai/job-name={name}"), 60)
        created = max(w.answered for w in creations)
        joined = parse_time(status["history"][0]["time"])
        return {
            "created": created - begin,
            "operator": created - answered,
            "joined": joined - begin,
            **{phase: at - begin for phase, at in times.items()},
        }

    async def stock(self, name: str) -> dict[str, float]:
        begin = time.time()
        await self._api.request("create", "services", CORE.format(self._namespace, "services"), body=bare_service(name))
        for index in range(WORKERS):
            await self._api.request("create", "pods", CORE.format(self._namespace, "pods"), body=bare_pod(name, index, self._image))
        created = time.time()
        times = self._times(lambda: self._pods(f"bare={name}"))
        self._kubectl("delete", "pod,service", "-l", f"bare={name}", "--wait=true")
        self._kubectl("delete", "service", name)
        return {"created": created - begin, **{phase: at - begin for phase, at in times.items()}}

    def _pods(self, selector: str) -> list[str]:
        return self._kubectl("get", "pods", "-l", selector, "-o", "name").split()

    def _times(self, pods: Any) -> dict[str, float]:
        """The latest of the ranks, for each phase that the script sees."""

        def told() -> list[Json] | None:
            lines = [line for pod in pods() for line in self._kubectl("logs", pod).splitlines() if "TIMES " in line]
            return [json.loads(line.partition("TIMES ")[2]) for line in lines] if len(lines) == WORKERS else None

        found: list[Json] = eventually(told, 120, interval=0.5)
        return {phase: max(rank[phase] for rank in found) for phase in found[0]}


async def run(number: int, output: Path | None) -> None:
    kubectl = Kubectl(substrate.kubeconfig())
    suffix = uuid.uuid4().hex[:6]
    namespace, system = f"bench-{suffix}", f"bench-{suffix}-system"
    named = images.load()
    installation = Installation(substrate.kubeconfig(), system, named, watched=(namespace,))
    kubectl("create", "namespace", namespace)
    about = facts()
    rows: dict[str, list[dict[str, float]]] = {"lepton": [], "torchrun": []}
    try:
        installation.install()
        inside = Kubectl(substrate.kubeconfig(), namespace)
        inside.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "script"},
                "data": {"train.py": SCRIPT, "stock.py": STOCK.read_text()},
            }
        )
        api = Api(await load_configuration(str(substrate.kubeconfig())))
        bench = Bench(api, inside, namespace, named["trainer"])
        for turn in range(number + 1):
            ours, stock = await bench.ours(f"job{turn}"), await bench.stock(f"bare{turn}")
            if turn:  # the first of each warms the image's files
                rows["lepton"].append(ours)
                rows["torchrun"].append(stock)
            print(f"{turn:3}  lepton {ours['step']:.2f} s   torchrun {stock['step']:.2f} s", file=sys.stderr)
        await api.close()
    finally:
        installation.uninstall()
        kubectl("delete", "namespace", namespace, system, "--wait=false")
    summaries = {
        f"{side} {phase}": summary([row[phase] for row in measured if phase in row])
        for side, measured in rows.items()
        for phase in (*PHASES, "operator")
        if any(phase in row for row in measured)
    }
    differences = [a["step"] - b["step"] for a, b in zip(rows["lepton"], rows["torchrun"], strict=True)]
    summaries["lepton minus torchrun, step"] = summary(differences)
    print(table(summaries))
    print(save("startup", {"about": about, "phases": __doc__, "summary": summaries, "runs": rows}, output))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    asyncio.run(run(options.number, options.output))
