"""Programs that this machine lacks, built from Go modules once and kept by content.

Kubernetes itself is one program that answers to several names (`node/main.go`). The others are published commands at pinned versions.
"""

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cluster.places import CHECKOUT, TOOLS, cache, locked
from cluster.terminal import Refused, step

KUBERNETES = "v1.35.4"
COMPONENTS = ("etcd", "coredns", "kubectl", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")


@dataclass(frozen=True, slots=True)
class Command:
    """A published Go command: its package path, its version, the build tags it needs and how long it takes on two cores."""

    package: str
    version: str
    minutes: float
    tags: str = ""


COMMANDS = {
    "kwok": Command("sigs.k8s.io/kwok/cmd/kwok", "v0.7.0", 2),
    "helm": Command("helm.sh/helm/v3/cmd/helm", "v3.20.2", 2),
    "kind": Command("sigs.k8s.io/kind", "v0.30.0", 1),
    # Every discovery but Kubernetes' is left out: without the tags it takes five times as long.
    "prometheus": Command("github.com/prometheus/prometheus/cmd/prometheus", "v0.316.0", 2.5, "netgo,remove_all_sd,enable_kubernetes_sd"),
    "promtool": Command("github.com/prometheus/prometheus/cmd/promtool", "v0.316.0", 0.5, "netgo,remove_all_sd,enable_kubernetes_sd"),
}


def tool(name: str) -> Path:
    """The path of a tool or Kubernetes component, which is built when this machine does not have it yet.

    Raises Refused when the name is unknown, Go is missing or the build fails.
    """
    if name in COMPONENTS:
        return kubernetes() / name
    if name not in COMMANDS:
        raise Refused(f"no tool is called {name!r}; there are: {', '.join((*COMPONENTS, *COMMANDS))}")
    command = COMMANDS[name]
    path = TOOLS / f"{name}-{command.version}" / name
    with locked(f"build-{name}"):
        if not path.exists():
            with (
                step(f"building {name} {command.version} (about {command.minutes:g} min, once)", long=True),
                _scratch(path.parent) as folder,
            ):
                tags = ["-tags", command.tags] if command.tags else []
                _go(["install", "-trimpath", "-ldflags", "-s -w", *tags, f"{command.package}@{command.version}"], GOBIN=str(folder))
    return path


def kubernetes() -> Path:
    """The folder that holds every component of `COMPONENTS` under its own name."""
    source = CHECKOUT / "cluster" / "node"
    digest = hashlib.sha256(b"".join((source / name).read_bytes() for name in ("main.go", "go.mod", "go.sum"))).hexdigest()[:12]
    folder = TOOLS / f"kubernetes-{KUBERNETES}-{digest}"
    with locked("build-kubernetes"):
        if not folder.exists():
            with step(f"building Kubernetes {KUBERNETES} (about 8 min, once)", long=True), _scratch(folder) as scratch:
                version = "k8s.io/component-base/version"
                major, minor, _ = KUBERNETES.removeprefix("v").split(".")
                stamps = {"gitVersion": KUBERNETES, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
                flags = " ".join(["-s -w", *(f"-X {version}.{key}={value}" for key, value in stamps.items())])
                _go(["build", "-trimpath", "-ldflags", flags, "-o", str(scratch / "node"), "."], cwd=source)
                for name in COMPONENTS:
                    (scratch / name).symlink_to("node")
    return folder


class _scratch:
    """A folder next to the wanted one, renamed to it only when all went well: a killed build never looks finished."""

    def __init__(self, wanted: Path) -> None:
        self.wanted = wanted
        self.path = wanted.with_name(wanted.name + ".part")

    def __enter__(self) -> Path:
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)
        return self.path

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.path.rename(self.wanted)


def _go(arguments: list[str], cwd: Path | None = None, **environment: str) -> None:
    if not shutil.which("go"):
        raise Refused("Go is not installed (1.25 or newer): the tools are built from source")
    log = cache() / "logs" / f"go-{arguments[-1].rpartition('/')[2]}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "-buildvcs=false", **environment}
    with log.open("w") as output:
        done = subprocess.run(["nice", "-n", "5", "go", *arguments], cwd=cwd, env=environment, stdout=output, stderr=output, check=False)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise Refused(f"go {arguments[0]} failed:\n{tail}\n(all of it: {log})")
