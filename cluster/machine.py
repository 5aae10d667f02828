"""Whether the embedded cluster can work on this machine, and the Debian packages that it needs."""

import os
import shutil
import subprocess
from pathlib import Path

from cluster.places import STATE, locked
from cluster.terminal import Refused, step

CNI_PLUGINS = Path("/usr/lib/cni")
CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
SOCKET_LIMIT = 100
"""Bytes that the path of a Unix socket may have, less a few (the kernel's limit is 108)."""

NODE_PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "ip": "iproute2",
    "mount": "mount",
    "openssl": "openssl",
    "catatonit": "catatonit",
    str(CNI_PLUGINS / "bridge"): "containernetworking-plugins",
}
IMAGE_PROGRAMS = {"buildah": "buildah", "debootstrap": "debootstrap", "tar": "tar"}
REGISTRY_PROGRAMS = {"docker-registry": "docker-registry"}


def require_root_and_kernel() -> None:
    """Raise Refused, naming what is missing, where containers can't be run."""
    if os.geteuid() != 0:
        raise Refused("the embedded cluster needs root: namespaces, mounts and iptables")
    if "overlay" not in Path("/proc/filesystems").read_text().split() and _fails("modprobe", "overlay"):
        raise Refused("the kernel has no overlay file system")
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists():
        absent = [name for name in ("cpu", "memory", "pids", "devices") if not Path("/sys/fs/cgroup", name).is_dir()]
        if absent:
            raise Refused(f"no cgroup controller {', '.join(absent)} is mounted under /sys/fs/cgroup")
    if not os.access("/sys/fs/cgroup", os.W_OK):
        raise Refused("/sys/fs/cgroup is read-only")
    if len(str(STATE / "containerd/containerd.sock")) > SOCKET_LIMIT:
        raise Refused(f"the path of {STATE} is too long for a socket in it; set LEPTON_CACHE to a shorter folder")


def require_network() -> None:
    """Raise Refused where this machine can't make a bridge with a network namespace behind it, or translate addresses."""
    probe = "lepton-probe"
    try:
        if _fails("ip", "link", "add", probe, "type", "bridge"):
            raise Refused("the kernel can't make a network bridge (CONFIG_BRIDGE, CAP_NET_ADMIN)")
    finally:
        _fails("ip", "link", "delete", probe)
    if _fails("iptables", "-t", "nat", "-S"):
        raise Refused("iptables has no nat table (CONFIG_NF_NAT, CAP_NET_ADMIN)")
    if not Path("/proc/sys/net/bridge/bridge-nf-call-iptables").exists() and _fails("modprobe", "br_netfilter"):
        raise Refused("the kernel lacks br_netfilter: a Service would not answer from a pod")


def install(programs: dict[str, str]) -> None:
    """Install the Debian packages of the programs that are missing; `programs` maps a program to its package.

    Raises Refused with the names where there is no apt-get or it fails.
    """
    missing = {program: package for program, package in programs.items() if not shutil.which(program)}
    if not missing:
        return
    names = ", ".join(missing)
    if not shutil.which("apt-get"):
        raise Refused(f"missing: {names}; install them with this machine's package manager")
    if os.geteuid() != 0:
        raise Refused(f"missing: {names}; installing them needs root")
    packages = sorted(set(missing.values()))
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    with locked("apt"), step(f"installing {' '.join(packages)}"):
        first = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if first.returncode:
            subprocess.run(["apt-get", "update", "-qq"], env=environment, capture_output=True, check=False)
            second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            if second.returncode:
                raise Refused(f"apt-get can't install {' '.join(packages)}: {second.stderr.strip()[-500:]}")


def _fails(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode != 0
    except FileNotFoundError:
        return True
