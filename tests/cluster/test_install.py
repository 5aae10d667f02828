"""Real Helm and real kubectl put the chart into a real cluster: what is made, what may be done with it, what stays.

The operator's own work is not looked at here: these tests need none of its images to run.
"""

import base64
import runpy
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import gotools
from kube import Kubectl, eventually

CHARTS = Path(__file__).parents[2] / "charts"
CHART = CHARTS / "lepton-operator"
CRD = "leptontrainingjobs.training.lepton.ai"
installer = runpy.run_path(str(CHARTS / "install_yaml.py"))
Helm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def helm(kubeconfig: Path, namespace: str) -> Helm:
    """Helm in the test's own namespace; fails the test when Helm fails, unless `check=False`."""

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(gotools.tool("helm")), f"--kubeconfig={kubeconfig}", f"--namespace={namespace}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert not check or done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr.strip()}"
        return done

    return run


def install(helm: Helm, *arguments: str, verb: str = "install", check: bool = True) -> subprocess.CompletedProcess[str]:
    # The CRD may be there from another test, of the same content.
    return helm(verb, "lepton", str(CHART), "--take-ownership", *arguments, check=check)


def pods(kubectl: Kubectl) -> list[str]:
    return [item["metadata"]["name"] for item in kubectl.get("pods", "-l", "app.kubernetes.io/component=operator")["items"]]


def ca(kubectl: Kubectl, secret: str = "lepton-coordinator-ca") -> str:
    data = kubectl.get("secret", secret).get("data") or {}
    return base64.b64decode(data.get("ca.crt", "")).decode()


def fill_ca(kubectl: Kubectl, secret: str = "lepton-coordinator-ca") -> None:
    """What the leader does once."""
    kubectl("patch", "secret", secret, "--type=merge", "-p", '{"stringData": {"ca.crt": "the first one"}}')


def may(kubectl: Kubectl, account: str, question: str, where: str) -> bool:
    """Whether the service account ("namespace:name") may do it there; `question` is "verb resource [subresource]"."""
    verb, resource, *subresource = question.split()
    options = [f"--as=system:serviceaccount:{account}", *(f"--subresource={name}" for name in subresource)]
    return Kubectl(kubectl.kubeconfig, where).run("auth", "can-i", verb, resource, *options).stdout.strip() == "yes"


def test_restricted_pod_security_lets_both_replicas_in(helm: Helm, kubectl: Kubectl, namespace: str) -> None:
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    try:
        said = install(helm, "--set", "replicas=2").stdout
        assert f"kubectl -n {namespace} rollout status deployment/lepton" in said
        assert len(eventually(lambda: len(pods(kubectl)) == 2 and pods(kubectl))) == 2
        assert kubectl.get("poddisruptionbudget", "lepton")["spec"]["maxUnavailable"] == 1
        assert "selector" not in kubectl.get("service", "lepton-coordinator")["spec"]
    finally:
        helm("uninstall", "lepton")


def test_the_service_account_may_do_what_the_operator_does_and_no_more(helm: Helm, kubectl: Kubectl, namespace: str) -> None:
    install(helm)
    try:
        for question, where in (
            ("get leptontrainingjobs", "default"),
            ("update leptontrainingjobs status", "default"),
            ("create pods", "default"),
            ("delete pods", "default"),
            ("create deployments.apps", "default"),
            ("update deployments.apps", "default"),
            ("delete deployments.apps", "default"),
            ("delete services", "default"),
            ("watch nodes", "default"),
            ("create events.events.k8s.io", "default"),
            ("get leases", "default"),
            ("update leases/lepton.training.lepton.ai", namespace),
            ("create endpointslices", namespace),
            ("update endpointslices/lepton-coordinator-leader", namespace),
            ("update endpointslices/lepton-coordinator-leader-ipv6", namespace),
            ("create tokenreviews", "default"),
            ("patch secrets/lepton-coordinator-ca", namespace),
        ):
            assert may(kubectl, f"{namespace}:lepton", question, where), question
        for question, where in (
            ("get secrets/other", namespace),
            ("list secrets", namespace),
            ("update leases/lepton.training.lepton.ai", "default"),
            ("update leases/other", namespace),
            ("update endpointslices/other", namespace),
            ("create endpointslices", "default"),
            ("update leptontrainingjobs", "default"),
            ("delete leptontrainingjobs", "default"),
            ("list services", "default"),
            ("list deployments.apps", "default"),
            ("patch deployments.apps", "default"),
            ("create pods exec", "default"),
            ("patch nodes", "default"),
            ("get configmaps", "default"),
            ("create serviceaccounts token", namespace),
        ):
            assert not may(kubectl, f"{namespace}:lepton", question, where), question
    finally:
        helm("uninstall", "lepton")


def test_an_upgrade_and_a_new_installation_keep_the_ca_and_the_crd(helm: Helm, kubectl: Kubectl) -> None:
    install(helm)
    try:
        assert ca(kubectl) == ""
        fill_ca(kubectl)
        install(helm, "--set", "log.level=debug", verb="upgrade")
        assert "--log-level=debug" in kubectl("get", "deployment", "lepton", "-o", "yaml")
        assert ca(kubectl) == "the first one"
        made = kubectl.get("crd", CRD)["metadata"]["uid"]
        helm("uninstall", "lepton")
        assert ca(kubectl) == "the first one"
        assert kubectl.get("crd", CRD)["metadata"]["uid"] == made
        helm("install", "lepton", str(CHART))
        assert ca(kubectl) == "the first one"
        assert kubectl.get("crd", CRD)["metadata"]["uid"] == made
    finally:
        helm("uninstall", "lepton", check=False)


def test_who_has_rights_in_one_namespace_alone_installs_for_it(helm: Helm, kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "rolebinding", "all-of-it", "--clusterrole=cluster-admin", f"--user=owner-of-{namespace}")
    as_owner = f"--kube-as-user=owner-of-{namespace}"
    refused = install(helm, as_owner, check=False)
    assert refused.returncode != 0 and "forbidden" in refused.stderr
    helm("install", "lepton", str(CHART), as_owner, "--set", f"watchNamespaces={{{namespace}}}")
    try:
        assert eventually(lambda: pods(kubectl))
        account = f"{namespace}:lepton"
        assert may(kubectl, account, "create pods", namespace)
        assert may(kubectl, account, "update leptontrainingjobs status", namespace)
        assert not may(kubectl, account, "create pods", "default")
        assert not may(kubectl, account, "watch nodes", "default")
    finally:
        helm("uninstall", "lepton", as_owner)


def test_install_yaml_is_applied_again_and_again_without_touching_the_ca(kubectl: Kubectl, kubeconfig: Path, namespace: str) -> None:
    text = installer["build"](namespace=namespace)
    everywhere = Kubectl(kubeconfig)
    secret = "lepton-operator-coordinator-ca"
    everywhere("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
    try:
        fill_ca(kubectl, secret)
        everywhere("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text)
        assert ca(kubectl, secret) == "the first one"
        everywhere("apply", "-f", "-", stdin=text)
        assert ca(kubectl, secret) == "the first one"
        assert eventually(lambda: pods(kubectl))
    finally:
        roles = [f"{namespace}-lepton-operator{suffix}" for suffix in ("", "-edit", "-view")]
        everywhere("delete", "clusterrole", *roles)
        everywhere("delete", "clusterrolebinding", roles[0])
