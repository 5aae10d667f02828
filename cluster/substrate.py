"""Which cluster serves here: the one that the user names, kind where there is Docker, else the embedded one."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from cluster import embedded, gotools, teardown
from cluster.addresses import FAKE_GPUS
from cluster.places import KUBECONFIG, STATE
from cluster.terminal import Refused, say, step

NAMED, KIND, EMBEDDED = "named", "kind", "embedded"
KIND_NAME = "lepton"


def choose() -> str:
    """NAMED, KIND or EMBEDDED."""
    if os.environ.get("LEPTON_KUBECONFIG"):
        return NAMED
    return KIND if docker_answers() else EMBEDDED


def docker_answers() -> bool:
    """Whether there is a Docker engine to talk to."""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def kubeconfig() -> Path:
    """The kubeconfig of the cluster that serves here, whether or not it is up."""
    return Path(os.environ.get("LEPTON_KUBECONFIG") or KUBECONFIG).expanduser().absolute()


def answers() -> bool:
    """Whether that cluster's API server says that it is ready."""
    if choose() == EMBEDDED:
        return embedded.is_up()
    return kubeconfig().exists() and kubectl("get", "--raw", "/readyz", check=False) == "ok"


def up() -> None:
    """Bring the cluster up, where it is ours; else only make sure that it answers. Raises Refused where that can't work."""
    match choose():
        case "named":
            with step(f"the cluster that {kubeconfig()} names answers"):
                if not answers():
                    raise Refused(f"the cluster that LEPTON_KUBECONFIG ({kubeconfig()}) names does not answer")
        case "kind":
            _kind_up()
        case _:
            embedded.up()


def down(purge: bool = False) -> None:
    """Take down the cluster that we made; a named one is not ours."""
    match choose():
        case "named":
            say("the cluster that LEPTON_KUBECONFIG names is not ours to take down")
        case "kind":
            with step("kind cluster"):
                subprocess.run([kind(), "delete", "cluster", "--name", KIND_NAME], capture_output=True, check=False)
            KUBECONFIG.unlink(missing_ok=True)
        case _:
            teardown.down(purge)


def kind() -> Path:
    """The kind program: the machine's own, else one built from source."""
    found = shutil.which("kind")
    return Path(found) if found else gotools.tool("kind")


def kubectl_program() -> str:
    """The machine's kubectl, else the one that is part of the embedded cluster's program."""
    return shutil.which("kubectl") or str(gotools.tool("kubectl"))


def kubectl(*arguments: str, check: bool = True) -> str:
    """What kubectl answers about the cluster that serves here. Raises Refused when it fails and `check` is on."""
    done = subprocess.run([kubectl_program(), f"--kubeconfig={kubeconfig()}", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise Refused(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout if done.returncode == 0 else ""


def _kind_up() -> None:
    STATE.mkdir(parents=True, exist_ok=True)
    listed = subprocess.run([kind(), "get", "clusters"], capture_output=True, text=True, check=False).stdout.split()
    with step("kind cluster", long=True):
        if KIND_NAME in listed:
            command = [str(kind()), "export", "kubeconfig", "--name", KIND_NAME, "--kubeconfig", str(KUBECONFIG)]
        else:
            command = [str(kind()), "create", "cluster", "--name", KIND_NAME, "--kubeconfig", str(KUBECONFIG), "--wait", "120s"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Refused(f"kind: {done.stderr.strip()[-1500:]}")
    with step(f"{FAKE_GPUS} fake GPUs"):
        add = [{"op": "add", "path": f"/status/{part}/nvidia.com~1gpu", "value": str(FAKE_GPUS)} for part in ("capacity", "allocatable")]
        for node in kubectl("get", "nodes", "-o", "name").split():
            kubectl("patch", node, "--subresource=status", "--type=json", f"--patch={json.dumps(add)}")
