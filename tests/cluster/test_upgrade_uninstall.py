"""Installing, upgrading and uninstalling with jobs that train: they are not disturbed, nothing is left that hangs a namespace."""

import json
import re
import runpy
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from installation import CHART, CHECKOUT, CRD, Installation
from kube import Kubectl, eventually
from plain_trainings import is_complete, step, train, undisturbed


@pytest.fixture(scope="module")
def images(kubeconfig: Path) -> dict[str, str]:
    done = subprocess.run([sys.executable, "-m", "cluster", "images"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    names: dict[str, str] = json.loads(done.stdout)
    return names


@pytest.fixture(scope="module", autouse=True)
def crd(kubeconfig: Path) -> None:
    """An installation for some namespaces finds the CRD there; this checkout's, whoever was here before."""
    file = CHECKOUT / "crds" / "leptontrainingjobs.training.lepton.ai.yaml"
    Kubectl(kubeconfig)("apply", "--server-side", "--force-conflicts", "-f", str(file))


@pytest.fixture
def places(kubeconfig: Path, namespace: str) -> Iterator[tuple[str, str]]:
    """Two namespaces for jobs; `namespace` is for the operator."""
    kubectl, names = Kubectl(kubeconfig), [f"test-{uuid.uuid4().hex[:10]}" for _ in range(2)]
    for name in names:
        kubectl("create", "namespace", name)
        eventually(lambda name=name: kubectl.run("get", "-n", name, "serviceaccount/default", "configmap/kube-root-ca.crt").returncode == 0)
    yield names[0], names[1]
    for name in names:
        kubectl.run("delete", "namespace", name, "--wait=false", "--ignore-not-found")


def test_an_upgrade_of_a_namespaced_installation_disturbs_no_job(
    kubeconfig: Path, namespace: str, kubectl: Kubectl, images: dict[str, str]
) -> None:
    """By a user who has rights in this namespace alone, under restricted pod security."""
    kubectl("create", "rolebinding", "all-of-it", "--clusterrole=cluster-admin", f"--user=owner-of-{namespace}")
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    lepton = Installation(kubeconfig, namespace, images, watched=(namespace,))
    as_owner = f"--kube-as-user=owner-of-{namespace}"
    values = [
        *("--set", f"watchNamespaces={{{namespace}}}"),
        *("--set", f"image.operator={images['operator']},image.trainer={images['trainer']}"),
    ]
    lepton.helm("install", lepton.release, str(CHART), as_owner, *values, "--wait", "--timeout=90s")
    try:
        job = train(kubeconfig, namespace, "upgraded", steps=250)
        eventually(lambda: step(job) > 1, timeout=90)
        agents, before = job.agents(), lepton.leader()
        lepton.helm("upgrade", lepton.release, str(CHART), as_owner, *values, "--set", "log.level=debug", "--wait", "--timeout=90s")
        eventually(lambda: lepton.leader() not in ("", before), timeout=40)
        stepped = step(job)
        eventually(lambda: step(job) > stepped or is_complete(job), timeout=60)
        assert job.agents() == agents or is_complete(job)
        eventually(lambda: is_complete(job), timeout=120)
        assert undisturbed(job) == (0, 1)
        assert "forbidden" not in lepton.log().lower()
    finally:
        lepton.helm("uninstall", lepton.release, as_owner, "--ignore-not-found", "--wait")


def test_jobs_outlive_the_operator_and_nothing_of_it_holds_a_namespace(
    kubeconfig: Path, namespace: str, places: tuple[str, str], images: dict[str, str]
) -> None:
    lepton = Installation(kubeconfig, namespace, images, watched=places)
    cluster = Kubectl(kubeconfig)
    lepton.install()
    try:
        doomed, adopted = train(kubeconfig, places[0], "doomed", steps=3000), train(kubeconfig, places[1], "adopted", steps=400)
        eventually(lambda: step(doomed) > 1 and step(adopted) > 1, timeout=120)
        agents = adopted.agents()
        lepton.uninstall()
        assert cluster.run("get", "crd", CRD).returncode == 0

        doomed.kubectl("delete", "ltj", "doomed")
        eventually(lambda: not doomed.pods(ended=False), timeout=60)
        cluster("delete", "namespace", places[0], "--wait=true", "--timeout=60s", timeout=70)

        assert adopted.agents() == agents
        lepton.watched = places[1:]
        lepton.install()
        reached = step(adopted)
        eventually(lambda: step(adopted) > reached or is_complete(adopted), timeout=60)
        eventually(lambda: is_complete(adopted), timeout=120)
        assert undisturbed(adopted) == (0, 1)
    finally:
        lepton.helm("uninstall", lepton.release, "--ignore-not-found", "--wait")


def test_the_operator_of_install_yaml_completes_a_job(kubeconfig: Path, namespace: str, images: dict[str, str]) -> None:
    """Under the restricted pod security that the file enforces; held to one namespace, so as to leave other tests' jobs alone."""
    text = runpy.run_path(str(CHART.parent / "install_yaml.py"))["build"](namespace=namespace)
    for name, image in images.items():
        assert f"lepton/{name}:" in text
        text = re.sub(rf"\blepton/{name}:[0-9.]+", image, text)
    text = text.replace("- --log-format=json", f"- --log-format=json\n        - --watch-namespace={namespace}")
    cluster = Kubectl(kubeconfig)
    cluster("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    try:
        inside = Kubectl(kubeconfig, namespace)
        inside("rollout", "status", "deployment/lepton-operator", "--timeout=90s", timeout=100)
        job = train(kubeconfig, namespace, "plain", steps=5)
        eventually(lambda: is_complete(job), timeout=120)
        assert "forbidden" not in inside("logs", "deployment/lepton-operator").lower()
    finally:
        objects = [item for item in yaml.safe_load_all(text) if item["kind"] not in ("Namespace", "CustomResourceDefinition")]
        cluster("delete", "--ignore-not-found", "-f", "-", stdin=yaml.safe_dump_all(objects))
