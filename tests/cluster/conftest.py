"""The real cluster that these tests speak to: brought up when it is not, never skipped."""

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import substrate
from kube import Kubectl, eventually

pytest.register_assert_rewrite("installation", "trainings")

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def kubeconfig() -> Path:
    """The kubeconfig of a cluster that answers."""
    if not substrate.answers():
        subprocess.run([sys.executable, "-m", "cluster", "up"], cwd=CHECKOUT, check=True)
    return substrate.kubeconfig()


@pytest.fixture(scope="session")
def trainer_image(kubeconfig: Path) -> str:
    """The name of the trainer image, made of the checkout as it is, in the cluster."""
    command = [sys.executable, "-m", "cluster", "images"]
    done = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
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
