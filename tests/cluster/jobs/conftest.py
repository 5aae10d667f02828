"""One installation of the operator for all tests of this package, and the namespaces that it serves.

`LEPTON_TEST_SCOPE=namespace` makes it serve these namespaces alone, on a cluster where another installation serves everything.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from installation import CHECKOUT, Installation
from kube import Kubectl, eventually
from trainings import SCRIPTS, WINDOW, Trainings, window

BROKEN = "x = 1\n\nif True print(x)\n"
"""A script with a syntax error in line 3."""
ROUNDS = CHECKOUT / "tests" / "local" / "scripts" / "rounds.py"
RESTRICTED = "pod-security.kubernetes.io/enforce=restricted"


@dataclass(frozen=True)
class Places:
    """Namespaces: of most jobs (under restricted pod security), of those with a quota, and one that a test may delete."""

    jobs: str
    quota: str
    doomed: str


@pytest.fixture(scope="package")
def images(kubeconfig: Path) -> dict[str, str]:
    """The images made of the checkout as it is: operator and trainer."""
    done = subprocess.run([sys.executable, "-m", "cluster", "images"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    names: dict[str, str] = json.loads(done.stdout)
    return names


@pytest.fixture(scope="package")
def places(kubeconfig: Path, images: dict[str, str]) -> Iterator[Places]:
    kubectl = Kubectl(kubeconfig)
    stem = f"e2e-{uuid.uuid4().hex[:6]}"
    made = Places(*(f"{stem}-{name}" for name in ("jobs", "quota", "doomed")))
    for name in (made.jobs, made.quota, made.doomed):
        kubectl("create", "namespace", name)
    kubectl("label", "namespace", made.jobs, RESTRICTED)
    for name in (made.jobs, made.quota, made.doomed):
        ready = ("get", "-n", name, "serviceaccount/default", "configmap/kube-root-ca.crt")
        eventually(lambda ready=ready: kubectl.run(*ready).returncode == 0)
        scripts = Path(__file__).parent / "scripts"
        files = [f"--from-file={path}" for path in (*sorted(scripts.glob("*.py")), CHECKOUT / "examples" / "digits.py", ROUNDS)]
        kubectl("create", "configmap", SCRIPTS, *files, f"--from-literal=broken.py={BROKEN}", "-n", name)
    inside = Kubectl(kubeconfig, made.jobs)
    inside.apply(*window(images["operator"]))
    inside("wait", f"pod/{WINDOW}", "--for=condition=Ready", "--timeout=60s")
    yield made
    for name in (made.jobs, made.quota, made.doomed):
        kubectl.run("delete", "namespace", name, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="package")
def operator(kubeconfig: Path, images: dict[str, str], places: Places) -> Iterator[Installation]:
    """The operator, two replicas of it."""
    watched = (places.jobs, places.quota, places.doomed) if os.environ.get("LEPTON_TEST_SCOPE") == "namespace" else ()
    installation = Installation(kubeconfig, f"{places.jobs.removesuffix('-jobs')}-system", images, watched, replicas=2)
    try:
        installation.install()
        yield installation
    finally:
        installation.helm("uninstall", "lepton", "--ignore-not-found")
        Kubectl(kubeconfig).run("delete", "namespace", installation.namespace, "--wait=false")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):  # type: ignore[no-untyped-def]
    report = yield
    if report.when == "call" and report.failed and (jobs := item.funcargs.get("trainings")) is not None:
        report.sections.append(("the jobs, and what the operator says of them", jobs.describe()))
    return report


@pytest.fixture
def trainings(operator: Installation, places: Places) -> Iterator[Trainings]:
    """Makes jobs in the namespace of most jobs; they are gone afterwards."""
    jobs = Trainings(operator, places.jobs)
    yield jobs
    jobs.clear()
