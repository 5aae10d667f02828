"""How long three pods stand still when one loses its process, or pod 0 is deleted: Lepton on a real cluster, and stock torchrun beside it.

    PYTHONPATH=.:operator:trainer_image:tests python bench/recovery_cluster.py [--number 20] [--torchrun 5]

Needs `make cluster-up`. The operator is installed by Helm, in the cluster, under its own service account. The script is that of
bench/recovery.py, from a ConfigMap; its notes go to a shared claim that the bench reads. Stock torchrun runs in three bare pods
(c10d, --nnodes 2:3), its attempts cut off after 60 s. Times in seconds from the kill or the deletion request:
decided   until the status write that won the next generation was answered (audit log)
started   until every survivor's new process runs its first line
stepped   until every survivor has made its first step
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.audit import AuditLog
from bench.figures import save, summary, table
from bench.machine import facts
from cluster import images, substrate
from cluster.places import AUDIT_LOG
from host_processes import pids_of_pod
from installation import Installation
from kube import Kubectl
from lepton_operator.job import parse_time

SCRIPT = Path(__file__).parent / "scripts" / "recovering.py"
WORKERS = 3
STOCK = Path(__file__).parent / "scripts" / "stock.py"
CUT_OFF = 60.0
PATIENCE = 180.0
Json = dict[str, Any]
CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "notes"},
    "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
}


class TimedOut(Exception):
    pass


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> Any:
    """The times are in the notes: looking seldom takes nothing from what is measured."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimedOut
        time.sleep(0.2)
    return found


class Group:
    """Three pods that train, seen through the notes of their ranks on the shared claim."""

    def __init__(self, kubectl: Kubectl, selector: str, folder: Path) -> None:
        self.kubectl, self._selector, self._folder = kubectl, selector, folder

    def notes(self, since: float) -> list[Json]:
        lines = [line for path in self._folder.glob("rank-*") for line in path.read_text().splitlines() if line.endswith("}")]
        found = [json.loads(line) for line in lines]
        young = {(n["pid"], n["store"], n["rank"]) for n in found if n["what"] == "start" and n["time"] > since}
        return [n for n in found if (n["pid"], n["store"], n["rank"]) in young]

    def of(self, what: str, since: float, world: int = 0) -> list[Json]:
        """The first notes of this kind of each rank of the first group that is complete since then."""
        groups: dict[str, list[Json]] = {}
        for note in self.notes(since):
            if note["what"] == what and (not world or note["world"] == world):
                groups.setdefault(note["store"], []).append(note)
        whole = [g for g in groups.values() if len({n["rank"] for n in g}) == g[0]["world"]]
        return min(whole, key=lambda g: max(n["time"] for n in g)) if whole else []

    def steady(self, since: float) -> None:
        until(lambda: self.of("steady", since, WORKERS))
        for path in self._folder.glob("rank-*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > 60:
                    path.unlink()

    def pods(self) -> list[Json]:
        items: list[Json] = self.kubectl.get("pods", "-l", self._selector)["items"]
        running = [p for p in items if p["status"].get("phase") == "Running" and "deletionTimestamp" not in p["metadata"]]
        return sorted(running, key=lambda p: str(p["metadata"]["name"]))

    def kill_process(self, index: int) -> float:
        """SIGKILL to the rank in pod `index`; the moment of it."""
        ranks = [p for p in pids_of_pod(self.pods()[index]["metadata"]["uid"]) if _is_rank(p)]
        at = time.time()
        os.kill(ranks[0], signal.SIGKILL)
        return at

    def delete_pod(self, index: int) -> float:
        name = self.pods()[index]["metadata"]["name"]
        at = time.time()
        self.kubectl("delete", "pod", name, "--wait=false", "--grace-period=1")
        return at


def _is_rank(pid: int) -> bool:
    """A rank has the report file of its generation mapped, or (stock) runs the script as its command."""
    try:
        maps = Path(f"/proc/{pid}/maps").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    script = any(part.endswith(b"train.py") for part in command)
    agent = b"-m" in command or any(b"lepton_trainer" in part or part.endswith(b"stock.py") for part in command)
    return ("report-" in maps and "libtorch" in maps) or (script and not agent)


def ours(kubectl: Kubectl, namespace: str, folder: Path, number: int, say: Callable[[str], None]) -> dict[str, list[Json]]:
    spec = {
        "trainer": {"command": ["python", "train.py", "/checkpoints"], "code": {"configMap": "script"}},
        "workers": {"replicas": WORKERS, "minReplicas": 1},
        "checkpoint": {"claimName": "notes", "path": "run"},
        "recovery": {"maxRestarts": 100},
    }
    kubectl.apply({"apiVersion": "training.lepton.ai/v1alpha1", "kind": "LeptonTrainingJob", "metadata": {"name": "bench"}, "spec": spec})
    group = Group(kubectl, "training.lepton.ai/job-name=bench", folder)
    group.steady(0.0)
    rows: dict[str, list[Json]] = {"process killed": [], "pod 0 deleted": []}
    for turn in range(number):
        for fault, survivors in (("process killed", WORKERS), ("pod 0 deleted", WORKERS - 1)):
            audit = AuditLog(AUDIT_LOG)
            at = group.kill_process(turn % WORKERS) if fault == "process killed" else group.delete_pod(0)
            first = until(lambda at=at, survivors=survivors: group.of("first step", at, survivors))
            status = kubectl.get("ltj", "bench")["status"]
            entry = next(e for e in status["history"] if parse_time(e["time"]) > at)
            writes = [w.answered for w in audit.writes(namespace) if w.resource == "leptontrainingjobs/status" and w.code < 400]
            decided = min((w for w in writes if w >= parse_time(entry["time"])), default=parse_time(entry["time"]))
            row = {
                "decided": decided - at,
                "started": max(n["time"] for n in group.of("start", at, survivors)) - at,
                "stepped": max(n["time"] for n in first) - at,
                "reason": entry["reason"],
            }
            rows[fault].append(row)
            say(f"lepton {turn + 1:2} {fault}: stepped {row['stepped']:.2f} s ({row['reason']})")
            group.steady(at)
    kubectl("delete", "ltj", "bench", "--wait=true", timeout=120)
    return rows


def stock(kubectl: Kubectl, image: str, folder: Path, number: int, say: Callable[[str], None]) -> dict[str, list[Json]]:
    rows: dict[str, list[Json]] = {"process killed": [], "pod 0 deleted": []}
    for turn in range(number):
        for fault in rows:
            name = f"stock{turn}-{fault.split()[0]}"
            service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"bare": name}}
            kubectl.apply(
                {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": service},
                *(_bare_pod(name, index, image) for index in range(WORKERS)),
            )
            group = Group(kubectl, f"bare={name}", folder)
            begun = time.time()
            try:
                group.steady(begun)
                at = group.kill_process(turn % WORKERS) if fault == "process killed" else group.delete_pod(0)
                survivors = WORKERS if fault == "process killed" else WORKERS - 1
                first = until(lambda at=at, s=survivors, g=group: g.of("first step", at, s), CUT_OFF)
                row: Json = {"stepped": max(n["time"] for n in first) - at}
            except TimedOut:
                row = {"stepped": CUT_OFF, "cut_off": True}
            rows[fault].append(row)
            say(f"torchrun {turn + 1:2} {fault}: {'not within 60 s' if 'cut_off' in row else format(row['stepped'], '.2f')}")
            kubectl("delete", "pod,service", "-l", f"bare={name}", "--wait=true", "--grace-period=0", "--force", timeout=120)
            kubectl("delete", "service", name, "--ignore-not-found")
    return rows


def _bare_pod(name: str, index: int, image: str) -> Json:
    # Without its own address torchrun tells the others its short host name, which they cannot resolve.
    arguments = [
        "--local-addr=$(POD_IP)",
        "--nnodes=2:3",
        "--nproc-per-node=1",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={name}-0.{name}:29400",
        "--max-restarts=100",
    ]
    command = ["python3", "stock.py", *arguments, f"--rdzv-id={name}", "train.py", "/checkpoints"]
    container = {
        "name": "trainer",
        "image": image,
        "command": command,
        "workingDir": "/workspace",
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "volumeMounts": [{"name": "code", "mountPath": "/workspace"}, {"name": "notes", "mountPath": "/checkpoints"}],
    }
    volumes = [{"name": "code", "configMap": {"name": "script"}}, {"name": "notes", "persistentVolumeClaim": {"claimName": "notes"}}]
    spec = {"restartPolicy": "Never", "hostname": f"{name}-{index}", "subdomain": name, "containers": [container], "volumes": volumes}
    labels = {"bare": name}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"{name}-{index}", "labels": labels}, "spec": spec}


def main(number: int, torchrun: int, output: Path | None) -> None:
    everywhere = Kubectl(substrate.kubeconfig())
    suffix = uuid.uuid4().hex[:6]
    namespace, system = f"bench-{suffix}", f"bench-{suffix}-system"
    named = images.load()
    installation = Installation(substrate.kubeconfig(), system, named, watched=(namespace,))
    everywhere("create", "namespace", namespace)
    about = facts()
    try:
        installation.install()
        kubectl = Kubectl(substrate.kubeconfig(), namespace)
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "script"},
                "data": {"train.py": SCRIPT.read_text(), "stock.py": STOCK.read_text()},
            },
            CLAIM,
        )
        volume = until(lambda: kubectl.get("pvc", "notes")["spec"].get("volumeName"))
        spec = everywhere.get("pv", volume)["spec"]
        folder = Path((spec.get("hostPath") or spec.get("local"))["path"])

        def say(text: str) -> None:
            print(text, file=sys.stderr, flush=True)

        rows = {"lepton": ours(kubectl, namespace, folder, number, say)}
        for path in folder.glob("*"):
            if path.is_file():
                path.unlink()
        rows["torchrun"] = stock(kubectl, named["trainer"], folder, torchrun, say)
    finally:
        installation.uninstall()
        everywhere("delete", "namespace", namespace, system, "--wait=false")
    summaries = {
        f"{side}, {fault}: {phase}": summary([row[phase] for row in measured if phase in row])
        for side, faults in rows.items()
        for fault, measured in faults.items()
        for phase in ("decided", "started", "stepped")
        if any(phase in row for row in measured)
    }
    print(table(summaries))
    print(save("recovery-cluster", {"about": about, "method": __doc__, "summary": summaries, "runs": rows}, output))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=20)
    parser.add_argument("--torchrun", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    main(options.number, options.torchrun, options.output)
