"""The real cluster that these tests speak to: brought up when it is not, never skipped."""

import json
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import substrate

Object = dict[str, Any]


class Kubectl:
    """kubectl as the administrator of the cluster, optionally in one namespace."""

    def __init__(self, kubeconfig: Path, namespace: str | None = None) -> None:
        self.kubeconfig = kubeconfig
        self.namespace = namespace

    def run(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """The finished process; its exit status is the caller's to judge."""
        where = ["--namespace", self.namespace] if self.namespace else []
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", *where, *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)

    def __call__(self, *arguments: str, stdin: str | None = None, timeout: float = 60) -> str:
        """What kubectl prints. Fails the test when kubectl fails."""
        done = self.run(*arguments, stdin=stdin, timeout=timeout)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr.strip()}"
        return done.stdout

    def get(self, *arguments: str) -> Object:
        """The object or list that `kubectl get` finds."""
        content: Object = json.loads(self("get", *arguments, "-o", "json"))
        return content

    def apply(self, *objects: Object) -> None:
        """Create the objects, or bring them to this content."""
        self("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": list(objects)}))


def eventually(condition: Callable[[], Any], timeout: float = 30, interval: float = 0.1) -> Any:
    """What `condition` returns, once that is true; fails the test, with the last answer or error, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            last = condition()
        except AssertionError as error:
            last = error
        if last and not isinstance(last, AssertionError):
            return last
        assert time.monotonic() < deadline, f"not within {timeout:.0f} s; last: {last!r}"
        time.sleep(interval)


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    """The kubeconfig of a cluster that answers."""
    if not substrate.answers():
        subprocess.run(["python3", "-m", "cluster", "up"], cwd=Path(__file__).parents[2], check=True)
    return substrate.kubeconfig()


@pytest.fixture(scope="session")
def trainer_image(kubeconfig: Path) -> str:
    """The name of the trainer image, made of the checkout as it is, in the cluster."""
    command = ["python3", "-m", "cluster", "images"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=True)
    return str(json.loads(done.stdout)["trainer"])


@pytest.fixture
def namespace(kubeconfig: Path) -> Iterator[str]:
    """A namespace of the test's own, in which pods can be made; gone afterwards, without waiting for it."""
    kubectl = Kubectl(kubeconfig)
    name = f"test-{uuid.uuid4().hex[:10]}"
    kubectl("create", "namespace", name)
    eventually(lambda: kubectl.run("get", "-n", name, "serviceaccount/default", "configmap/kube-root-ca.crt").returncode == 0)
    yield name
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def kubectl(kubeconfig: Path, namespace: str) -> Kubectl:
    """kubectl in the test's own namespace."""
    return Kubectl(kubeconfig, namespace)
