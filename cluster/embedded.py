"""Brings up the embedded single-node cluster: from nothing, from a half-started one, or after a crash. Safe to repeat."""

import json
import subprocess
import urllib.error
from pathlib import Path

from cluster import certificates, daemons, gotools, machine, objects, pause, settings, teardown
from cluster.addresses import BRIDGE, BRIDGE_ADDRESS, FAKE_GPUS, NODE, PREFIX_LENGTH
from cluster.api import Api
from cluster.places import KUBECONFIG, LOGS, STATE
from cluster.terminal import Refused, step, wait_until

SYSCTLS = ("net.ipv4.ip_forward", "net.bridge.bridge-nf-call-iptables")
BOOT = STATE / "boot"
"""Names the boot of the machine in which the state was made, and how the machine's settings were before."""


def up() -> None:
    """Bring the embedded cluster up. Raises Refused, saying what is missing, where that can't work."""
    machine.require_root_and_kernel()
    machine.install(machine.NODE_PROGRAMS)
    machine.require_network()
    programs = gotools.kubernetes()
    STATE.mkdir(parents=True, exist_ok=True)
    _forget_an_earlier_boot()
    with step("certificates and configuration"):
        certificates.write_all()
        settings.write()
    with step("bridge, address and forwarding"):
        _network()
    foundation, components = settings.foundation(programs), settings.components(programs)
    with step("etcd, containerd, API server"):
        for folder in (settings.CONTAINERD, settings.KUBELET, settings.POD_LOGS, LOGS):
            folder.mkdir(parents=True, exist_ok=True)
        for daemon in foundation:
            daemons.start(daemon)
        api = Api(KUBECONFIG)
        names = [daemon.name for daemon in foundation]
        wait_until("the API server answers", lambda: _all_run(names) and api.ready(), 60)
        wait_until("containerd answers", lambda: _all_run(names) and _ctr("version"), 30)
        pause.require_image()
    with step("controllers, scheduler, kubelet, kube-proxy, CoreDNS"):
        for daemon in components:
            daemons.start(daemon)
        names += [daemon.name for daemon in components]
        wait_until("the node is Ready", lambda: _all_run(names) and _node_ready(api), 60)
    with step(f"cluster DNS, storage class, {FAKE_GPUS} fake GPUs"):
        objects.apply_all(api)
        wait_until("the node has its fake GPUs", lambda: _fake_gpus(api), 20)
    with step("first namespace takes pods"):
        namespace = "/api/v1/namespaces/default"
        wait_until(
            "the namespace has its service account and its certificates",
            lambda: all(api.get(f"{namespace}/{path}") for path in ("serviceaccounts/default", "configmaps/kube-root-ca.crt")),
            30,
        )


def is_up() -> bool:
    """Whether the embedded cluster answers."""
    return KUBECONFIG.exists() and daemons.running("kube-apiserver") and Api(KUBECONFIG).ready()


def _all_run(names: list[str]) -> bool:
    daemons.require_running(names)
    return True


def _forget_an_earlier_boot() -> None:
    """After a reboot nothing of the old node lives, and etcd, which does not wait for the disk, may be torn: begin anew."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if BOOT.exists() and json.loads(BOOT.read_text())["boot"] != boot:
        with step("the machine was restarted: forgetting the old cluster"):
            teardown.down()
    if not BOOT.exists():
        _refuse_a_foreign_kubelet()
        before = {name: value for name in SYSCTLS if (value := _sysctl(name)) is not None}
        BOOT.write_text(json.dumps({"boot": boot, "sysctls": before}))


def _refuse_a_foreign_kubelet() -> None:
    if teardown.pod_cgroups():
        raise Refused(
            "another Kubernetes node runs on this machine (there are `kubepods` cgroups); name its kubeconfig in LEPTON_KUBECONFIG"
        )


def _network() -> None:
    if not Path("/sys/class/net", BRIDGE).exists():
        _ip("link", "add", BRIDGE, "type", "bridge")
    _ip("address", "replace", f"{BRIDGE_ADDRESS}/{PREFIX_LENGTH}", "dev", BRIDGE)
    _ip("link", "set", BRIDGE, "up")
    for name in SYSCTLS:
        path = Path("/proc/sys", *name.split("."))
        if path.read_text().strip() != "1":
            path.write_text("1")


def _sysctl(name: str) -> str | None:
    path = Path("/proc/sys", *name.split("."))
    return path.read_text().strip() if path.exists() else None


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Refused(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _ctr(*arguments: str) -> bool:
    command = ["ctr", "--address", str(settings.CONTAINERD_SOCKET), "--connect-timeout", "1s", *arguments]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _node_ready(api: Api) -> bool:
    node = api.get(f"/api/v1/nodes/{NODE}")
    conditions = node["status"].get("conditions", []) if node else []
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def _fake_gpus(api: Api) -> bool:
    """Write the GPUs into the node's status, where they stay; true once they are there."""
    status = (api.get(f"/api/v1/nodes/{NODE}") or {})["status"]
    if all(status[kind].get("nvidia.com/gpu") == str(FAKE_GPUS) for kind in ("capacity", "allocatable")):
        return True
    add = [{"op": "add", "path": f"/status/{kind}/nvidia.com~1gpu", "value": str(FAKE_GPUS)} for kind in ("capacity", "allocatable")]
    try:
        api.patch(f"/api/v1/nodes/{NODE}/status", add)
    except urllib.error.HTTPError as error:
        if error.code != 409:
            raise
    return False
