"""Where things lie: built tools and images (kept for good) and the one cluster's state (wiped by `down`).

Everything is below one folder, `$LEPTON_CACHE`, outside the checkout. What is built is named by its content, so a new version never
overwrites one that runs.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def cache() -> Path:
    """The folder that holds all we keep on this machine."""
    named = os.environ.get("LEPTON_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "lepton"


TOOLS = cache() / "tools"
"""Programs built from Go modules, one folder per version and content."""
BUILDAH = cache() / "buildah"
"""The image builder's own storage."""
LAYOUT = cache() / "images"
"""An OCI image layout: what is handed from the builder to the cluster, blob by blob."""
STATE = cache() / "cluster"
"""The cluster: certificates, kubeconfigs, etcd, containerd, logs, process records."""
KUBECONFIG = STATE / "kubeconfig"
"""The administrator's kubeconfig of the cluster that we made (embedded or kind)."""
LOGS = STATE / "logs"
AUDIT_LOG = LOGS / "audit.log"


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the machine-wide lock NAME; waits while another checkout holds it. A killed holder lets go by itself."""
    folder = cache() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
