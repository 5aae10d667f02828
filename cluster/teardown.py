"""Takes the embedded cluster down, whole or crashed, and leaves no process, mount, network, chain or cgroup of it behind."""

import contextlib
import json
import re
import shutil
import subprocess
import time
from pathlib import Path

from cluster import daemons
from cluster.addresses import BRIDGE
from cluster.places import BUILDAH, KUBECONFIG, STATE
from cluster.settings import CONTAINERD, CONTAINERD_SOCKET, KUBELET, POD_LOGS
from cluster.terminal import Refused, step

CGROUPS = Path("/sys/fs/cgroup")
CNI_RESULTS = Path("/var/lib/cni/results")
SHIM_SOCKETS = Path("/run/containerd/s")
LAST = ("kube-apiserver", "etcd")
"""Stopped one after the other at the end: without etcd the API server would hang in its own shutdown."""


def down(purge: bool = False) -> None:
    """Stop everything and forget the cluster's content. Images and certificates stay, for a quick next start, unless `purge`."""
    with step("kubelet, controllers, DNS and what else was started"):
        daemons.stop([name for name in daemons.names() if name not in (*LAST, "containerd")])
    with step("containers"):
        _end_containers()
    with step("containerd, API server, etcd"):
        for name in ("containerd", *LAST):
            daemons.stop([name])
        daemons.terminate(daemons.strays(), 2)
    with step("mounts, network, iptables chains, cgroups"):
        _unmount(STATE)
        _unmount(BUILDAH)
        _network()
        for program in ("iptables", "ip6tables"):
            _chains(program)
        _cgroups()
    with step("state on disk"):
        _restore_sysctls()
        _files(purge)


def pod_cgroups() -> list[Path]:
    """The kubelet's cgroups of pods, one for each hierarchy that has any."""
    return [path for path in (CGROUPS / "kubepods", *CGROUPS.glob("*/kubepods")) if path.is_dir()]


def _end_containers() -> None:
    # A dead containerd makes ctr wait for ten seconds, so look at the process first.
    if daemons.running("containerd"):
        tasks = _lines("ctr", "--address", str(CONTAINERD_SOCKET), "-n", "k8s.io", "task", "ls", "-q")
        if tasks:
            _quiet("ctr", "--address", str(CONTAINERD_SOCKET), "-n", "k8s.io", "task", "rm", "-f", *tasks)
        containers = _lines("ctr", "--address", str(CONTAINERD_SOCKET), "-n", "k8s.io", "container", "ls", "-q")
        if containers:
            _quiet("ctr", "--address", str(CONTAINERD_SOCKET), "-n", "k8s.io", "container", "rm", *containers)
    # Shims belong to PID 1, and after a crash so do containers: the kernel knows which processes a pod has.
    left = []
    for root in pod_cgroups():
        for path in root.rglob("cgroup.procs"):
            with contextlib.suppress(OSError):
                for line in path.read_text().split():
                    left.append(daemons.Process(int(line), daemons.start_time(int(line))))
    daemons.terminate(left, 0)
    daemons.terminate([process for process in daemons.strays() if _is_shim(process.pid)], 1)


def _is_shim(pid: int) -> bool:
    try:
        return b"containerd-shim" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
    except OSError:
        return False


def _unmount(folder: Path) -> None:
    def mounts() -> list[str]:
        points = [line.split()[4].replace("\\040", " ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        return [point for point in points if point.startswith(f"{folder}/")]

    for point in reversed(mounts()):
        if _quiet("umount", point):
            _quiet("umount", "--lazy", point)
    if left := mounts():
        # What is deleted next may be somebody's data behind such a mount.
        raise Refused(f"can't unmount {', '.join(left)}; nothing is deleted")


def _network() -> None:
    for link in Path("/sys/class/net", BRIDGE, "brif").glob("*"):
        _quiet("ip", "link", "delete", link.name)
    if Path("/sys/class/net", BRIDGE).exists():
        _quiet("ip", "link", "delete", BRIDGE)
    for result in CNI_RESULTS.iterdir() if CNI_RESULTS.is_dir() else ():
        if f"{STATE}/" in result.read_text(errors="replace"):  # the path of a network namespace
            result.unlink()
    _remove_empty(CNI_RESULTS, CNI_RESULTS.parent)


def _chains(program: str) -> None:
    if not shutil.which(f"{program}-save"):
        return
    saved = subprocess.run([f"{program}-save"], capture_output=True, text=True, check=False).stdout
    if script := chain_removal(saved):
        subprocess.run([f"{program}-restore", "--noflush"], input=script, text=True, capture_output=True, check=False)


def chain_removal(saved: str) -> str:
    """What `iptables-restore --noflush` must read to take out Kubernetes' chains and the rules that lead to them, and nothing else.

    `saved` is the output of `iptables-save`; the answer is empty where there are no such chains.
    """
    script: list[str] = []
    for table in re.split(r"^\*", saved, flags=re.MULTILINE)[1:]:
        name, *lines = table.splitlines()
        chains = [line.split()[0][1:] for line in lines if line.startswith(":KUBE-")]
        leading = [line[3:] for line in lines if re.match(r"-A (?!KUBE-).* -[jg] KUBE-", line)]
        if chains:
            script += [f"*{name}", *(f"-D {rule}" for rule in leading)]
            script += [*(f"-F {chain}" for chain in chains), *(f"-X {chain}" for chain in chains), "COMMIT"]
    return "".join(f"{line}\n" for line in script)


def _cgroups() -> None:
    deadline = time.monotonic() + 5
    while (roots := pod_cgroups()) and time.monotonic() < deadline:
        for root in roots:
            for folder in sorted((path for path in root.rglob("*") if path.is_dir()), key=lambda path: -len(path.parts)):
                with contextlib.suppress(OSError):
                    folder.rmdir()
            with contextlib.suppress(OSError):
                root.rmdir()
        time.sleep(0.02)


def _restore_sysctls() -> None:
    boot = STATE / "boot"
    if boot.exists():
        for name, value in json.loads(boot.read_text())["sysctls"].items():
            with contextlib.suppress(OSError):
                Path("/proc/sys", *name.split(".")).write_text(value)
        boot.unlink()


def _files(purge: bool) -> None:
    # A socket's name does not tell whose shim it was; one that nobody has open is of no use to anybody.
    in_use = Path("/proc/net/unix").read_text()
    for socket in SHIM_SOCKETS.iterdir() if SHIM_SOCKETS.is_dir() else ():
        if str(socket) not in in_use:
            socket.unlink()
    _remove_empty(SHIM_SOCKETS, SHIM_SOCKETS.parent)
    links = Path("/var/log/containers")
    for link in links.glob("*.log") if links.is_dir() else ():
        if link.is_symlink() and str(link.readlink()).startswith(f"{POD_LOGS}/"):
            link.unlink()
    # The kubelet makes these whatever its root is; they go only when nobody else put something there.
    plugins = Path("/var/lib/kubelet/device-plugins")
    for leftover in ("kubelet.sock", "kubelet_internal_checkpoint", "DEPRECATION"):
        with contextlib.suppress(OSError):
            (plugins / leftover).unlink()
    _remove_empty(plugins, plugins.parent, links)
    for name in ("etcd", "cni-addresses", "prometheus", "volumes"):
        shutil.rmtree(STATE / name, ignore_errors=True)
    for folder in (KUBELET, POD_LOGS, CONTAINERD / "state", CONTAINERD / "runc", STATE / "processes"):
        shutil.rmtree(folder, ignore_errors=True)
    KUBECONFIG.unlink(missing_ok=True)
    if purge:
        shutil.rmtree(STATE, ignore_errors=True)


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


def _quiet(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode
