"""The embedded cluster survives the death of everything it is made of, and goes without a trace. No other test may use it meanwhile."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import daemons, places, substrate, teardown
from cluster.addresses import BRIDGE
from kube import Kubectl, eventually

CHECKOUT = Path(__file__).parents[2]
PAUSE_POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "lasting"},
    "spec": {
        "terminationGracePeriodSeconds": 1,
        "containers": [{"name": "main", "image": "lepton/pause:1", "imagePullPolicy": "Never"}],
    },
}


def cluster(*arguments: str) -> None:
    done = subprocess.run([sys.executable, "-m", "cluster", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def traces() -> dict[str, list[str]]:
    """What there is of a cluster on this machine, by kind; empty lists where there is nothing."""
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    chains = [
        line
        for program in ("iptables-save", "ip6tables-save")
        for line in subprocess.run([program], capture_output=True, text=True, check=False).stdout.splitlines()
        if "KUBE-" in line or "CNI-" in line
    ]
    sockets = Path("/run/containerd/s")
    return {
        "processes": [str(process) for process in daemons.strays()],
        "mounts": [point for point in mounts if point.startswith((str(places.STATE), str(places.BUILDAH)))],
        "links": [path.name for path in Path("/sys/class/net").iterdir() if path.name == BRIDGE or path.name.startswith("veth")],
        "chains": chains,
        "cgroups": [str(path) for path in teardown.pod_cgroups()],
        "shim sockets": [path.name for path in sockets.iterdir()] if sockets.is_dir() else [],
        "kubelet": [str(path) for path in (Path("/var/lib/kubelet"), Path("/var/lib/cni/results")) if path.exists()],
    }


@pytest.fixture
def kubectl() -> Iterator[Kubectl]:
    """kubectl in the default namespace of an embedded cluster that is up; the cluster is up again afterwards."""
    assert substrate.choose() == substrate.EMBEDDED, "this test is about the embedded cluster"
    cluster("up")
    yield Kubectl(places.KUBECONFIG, "default")
    cluster("up")


def kill_everything() -> None:
    """SIGKILL to all daemons, shims and containers at once, as a machine's out-of-memory killer at its worst."""
    pids = {process.pid for process in daemons.strays()}
    pids |= {process.pid for name in daemons.names() if (process := daemons.process(name))}
    for root in teardown.pod_cgroups():
        for path in root.rglob("cgroup.procs"):
            pids |= {int(line) for line in path.read_text().split()}
    assert len(pids) >= 11
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def test_after_sigkill_of_everything_up_brings_the_same_cluster_with_its_pods_back(kubectl: Kubectl) -> None:
    kubectl.apply(PAUSE_POD)
    kubectl("wait", "--for=condition=Ready", "pod/lasting", "--timeout=30s")
    uid = kubectl.get("pod", "lasting")["metadata"]["uid"]
    kill_everything()
    cluster("up")
    try:
        assert kubectl.get("pod", "lasting")["metadata"]["uid"] == uid

        def runs_again() -> bool:
            states = kubectl.get("pod", "lasting")["status"]["containerStatuses"]
            return bool(states[0]["restartCount"] >= 1 and states[0]["ready"])

        eventually(runs_again, timeout=60)
    finally:
        kubectl("delete", "pod", "lasting", "--wait=true", "--timeout=30s")


def test_down_leaves_no_process_mount_link_chain_or_cgroup(kubectl: Kubectl) -> None:
    kubectl.apply(PAUSE_POD)
    kubectl("wait", "--for=condition=Ready", "pod/lasting", "--timeout=30s")
    up = traces()
    assert up["processes"] and up["mounts"] and up["links"] and up["chains"] and up["cgroups"] and up["shim sockets"]
    cluster("down")
    assert traces() == {kind: [] for kind in up}
    cluster("down")  # once more, where nothing is


def test_down_after_sigkill_of_everything_leaves_nothing_either(kubectl: Kubectl) -> None:
    kubectl.apply(PAUSE_POD)
    kubectl("wait", "--for=condition=Ready", "pod/lasting", "--timeout=30s")
    kill_everything()
    cluster("down")
    assert not any(traces().values())


def test_a_named_kubeconfig_that_does_not_answer_is_refused_with_its_path_and_left_alone(tmp_path: Path) -> None:
    broken = tmp_path / "kubeconfig"
    server = {"name": "gone", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "gone", "context": {"cluster": "gone", "user": ""}}
    broken.write_text(
        json.dumps({"apiVersion": "v1", "kind": "Config", "clusters": [server], "contexts": [context], "current-context": "gone"})
    )
    command = [sys.executable, "-m", "cluster"]
    environment = {**os.environ, "LEPTON_KUBECONFIG": str(broken)}
    up = subprocess.run([*command, "up"], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert up.returncode == 1
    assert str(broken) in up.stderr and "does not answer" in up.stderr and "--local" in up.stderr
    down = subprocess.run([*command, "down"], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    assert down.returncode == 0 and "not ours" in down.stderr


def test_a_named_kubeconfig_that_answers_is_used_and_never_taken_down(kubectl: Kubectl, tmp_path: Path) -> None:
    named = tmp_path / "kubeconfig"
    shutil.copy(places.KUBECONFIG, named)
    environment = {**os.environ, "LEPTON_KUBECONFIG": str(named)}
    for command, words in (("up", str(named)), ("down", "not ours")):
        done = subprocess.run(
            [sys.executable, "-m", "cluster", command], cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0 and words in done.stdout + done.stderr, done.stderr
    assert kubectl("get", "--raw", "/readyz") == "ok"


def test_without_root_up_says_so_and_points_at_local_mode(tmp_path: Path) -> None:
    # A copy, because an ordinary user may not be able to read the checkout.
    shutil.copytree(CHECKOUT / "cluster", tmp_path / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    cache = tmp_path / "cache"
    cache.mkdir()
    os.chown(cache, 65534, 65534)
    interpreter = shutil.which("python3", path="/usr/bin:/bin") or sys.executable
    done = subprocess.run(
        [interpreter, "-m", "cluster", "up"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "LEPTON_CACHE": str(cache)},
        user=65534,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "needs root" in done.stderr and "lepton run" in done.stderr and "--local" in done.stderr
