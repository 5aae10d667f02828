"""Nodes that exist on paper only: kwok says that they are ready and that pods on them run. For scale, where one machine has no room."""

import concurrent.futures

from cluster import certificates, daemons, gotools, substrate
from cluster.addresses import FAKE_GPUS
from cluster.api import Api, Object
from cluster.terminal import Refused, step, wait_until

ANNOTATION = "kwok.x-k8s.io/node"
PARALLEL = 8


def fake(count: int) -> None:
    """Have exactly `count` fake nodes, called fake-0000 and so on; with none, kwok is stopped.

    Each takes 256 pods and has 64 CPUs, 512 GiB and 8 GPUs. A pod gets there only by tolerating the taint `kwok.x-k8s.io/node=fake`.
    """
    if substrate.choose() != substrate.EMBEDDED or not substrate.answers():
        raise Refused("fake nodes are for the embedded cluster, which is not up: `make cluster-up`")
    api = Api(certificates.kubeconfig("kwok"))
    present = {node["metadata"]["name"] for node in _fakes(api)}
    wanted = {f"fake-{number:04}" for number in range(count)}
    if wanted:
        arguments = (
            str(gotools.tool("kwok")),
            f"--kubeconfig={certificates.kubeconfig('kwok')}",
            "--manage-all-nodes=false",
            f"--manage-nodes-with-annotation-selector={ANNOTATION}=fake",
            "--node-lease-duration-seconds=40",
            "--server-address=127.0.0.1:10247",
        )
        daemons.start(daemons.Daemon("kwok", arguments))
    with step(f"{count} fake nodes"), concurrent.futures.ThreadPoolExecutor(PARALLEL) as pool:
        list(pool.map(lambda name: api.apply(f"/api/v1/nodes/{name}", _node(name)), sorted(wanted - present)))
        list(pool.map(lambda name: api.delete(f"/api/v1/nodes/{name}"), sorted(present - wanted)))
        wait_until("every fake node is Ready", lambda: len(_ready(api)) == count, 60, interval=0.2)
    if not wanted:
        daemons.stop(["kwok"])


def _fakes(api: Api) -> list[Object]:
    listed: list[Object] = api.call("GET", "/api/v1/nodes?labelSelector=type%3Dkwok", timeout=30)["items"]
    return listed


def _ready(api: Api) -> list[Object]:
    def is_ready(node: Object) -> bool:
        return any(item["type"] == "Ready" and item["status"] == "True" for item in node["status"].get("conditions", []))

    return [node for node in _fakes(api) if is_ready(node)]


def _node(name: str) -> Object:
    room = {"cpu": "64", "memory": "512Gi", "pods": "256", "ephemeral-storage": "1Ti", "nvidia.com/gpu": str(FAKE_GPUS)}
    labels = {"type": "kwok", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {ANNOTATION: "fake"}},
        "spec": {"taints": [{"key": ANNOTATION, "value": "fake", "effect": "NoSchedule"}]},
        "status": {"capacity": room, "allocatable": room},
    }
