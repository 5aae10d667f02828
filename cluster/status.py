"""What runs of the cluster, in words for a person."""

from pathlib import Path

from cluster import daemons, images, substrate
from cluster.terminal import Refused

NAMES = {
    substrate.NAMED: "the one that LEPTON_KUBECONFIG names",
    substrate.KIND: "kind",
    substrate.EMBEDDED: "embedded in this machine",
}


def text() -> str:
    """Several lines: which cluster, whether it answers, its processes and memory, nodes, and our images in it."""
    kind = substrate.choose()
    up = substrate.answers()
    lines = [f"cluster     {NAMES[kind]}: {'up' if up else 'down'}", f"kubeconfig  {substrate.kubeconfig()}"]
    if kind == substrate.EMBEDDED:
        for name in daemons.names():
            running = daemons.process(name)
            lines.append(f"  {name:<26}" + (f"pid {running.pid:<8} {_resident(running.pid):6.0f} MiB" if running else "not running"))
    for target, name in images.latest().items():
        lines.append(f"image       {target}: {name}")
    if up:
        try:
            lines.append(substrate.kubectl("get", "nodes,pods", "--all-namespaces", "--no-headers", "--ignore-not-found").rstrip())
        except Refused as refusal:
            lines.append(str(refusal))
    else:
        lines.append("bring it up: `make cluster-up`; or without a cluster: `lepton run JOB.yaml --local`")
    return "\n".join(lines)


def _resident(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0
