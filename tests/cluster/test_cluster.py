"""The development cluster does what the project's tests and its users need of a Kubernetes."""

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import daemons, images, machine, places, prometheus, substrate
from cluster.addresses import FAKE_GPUS, NODE
from kube import Kubectl, Object, eventually

CHECKOUT = Path(__file__).parents[2]
embedded_only = pytest.mark.usefixtures("embedded")


def cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command of the development cluster, well ended."""
    done = subprocess.run([sys.executable, "-m", "cluster", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


def pod(name: str, image: str, *command: str, labels: dict[str, str] | None = None, **spec: object) -> Object:
    container = {
        "name": "main",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        **({"resources": spec.pop("resources")} if "resources" in spec else {}),
        **({"volumeMounts": spec.pop("mounts")} if "mounts" in spec else {}),
    }
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {}, **({"annotations": spec.pop("annotations")} if "annotations" in spec else {})},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "securityContext": security,
            "containers": [container],
            **spec,
        },
    }


def python(source: str) -> tuple[str, str, str]:
    return ("python", "-c", source)


def phase(kubectl: Kubectl, name: str) -> str:
    return str(kubectl.get("pod", name)["status"]["phase"])


def running_pids() -> dict[str, int]:
    return {name: process.pid for name in daemons.names() if (process := daemons.process(name))}


@contextlib.contextmanager
def registry(folder: Path) -> Iterator[str]:
    """A real image registry on loopback, with its storage in `folder`; yields its address."""
    machine.install(machine.REGISTRY_PROGRAMS)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": 0.1,
        "storage": {"filesystem": {"rootdirectory": str(folder)}},
        "http": {"addr": address},
        "log": {"level": "error"},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    process = subprocess.Popen(
        ["docker-registry", "serve", str(folder / "config.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answers() -> bool:
        try:
            with urllib.request.urlopen(f"http://{address}/v2/") as response:
                return bool(response.status == 200)
        except OSError:
            return False

    try:
        eventually(answers)
        yield address
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture
def embedded() -> None:
    """For what only the embedded cluster promises; where another serves, that is a failure to say so, not a skip."""
    assert substrate.choose() == substrate.EMBEDDED, "this test is about the embedded cluster"


def test_up_again_changes_nothing_and_takes_seconds(kubeconfig: Path) -> None:
    before = running_pids()
    started = time.monotonic()
    cluster("up")
    assert running_pids() == before
    assert time.monotonic() - started < 10


def test_a_pod_answers_through_a_service_by_name_to_another_pod(kubectl: Kubectl, trainer_image: str) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
    }
    ask = (
        "import time, urllib.request\n"
        "for _ in range(200):\n"
        "    try: print(urllib.request.urlopen('http://web/proof').status); break\n"
        "    except OSError as error: last = error; time.sleep(0.1)\n"
        "else: raise last"
    )
    serve = (
        "import http.server as h\nclass H(h.BaseHTTPRequestHandler):\n    def do_GET(self): self.send_response(200); self.end_headers()\n"
    )
    serve += "h.HTTPServer(('', 8000), H).serve_forever()"
    kubectl.apply(service, pod("web", trainer_image, *python(serve), labels={"app": "web"}), pod("client", trainer_image, *python(ask)))
    eventually(lambda: phase(kubectl, "client") == "Succeeded")
    assert kubectl("logs", "client").strip() == "200"


def test_logs_and_exec_reach_a_pod(kubectl: Kubectl, trainer_image: str) -> None:
    kubectl.apply(pod("talker", trainer_image, *python("import time; print('said', flush=True); time.sleep(600)")))
    kubectl("wait", "--for=condition=Ready", "pod/talker", "--timeout=30s")
    eventually(lambda: kubectl("logs", "talker") == "said\n")
    assert kubectl("exec", "talker", "--", "id", "-u").strip() == "65532"


def test_fake_gpus_are_counted_and_a_pod_that_asks_for_too_many_waits(kubectl: Kubectl, trainer_image: str) -> None:
    assert kubectl.get("node", NODE)["status"]["allocatable"]["nvidia.com/gpu"] == str(FAKE_GPUS)
    for name, count in (("fits", 1), ("greedy", FAKE_GPUS + 1)):
        kubectl.apply(pod(name, trainer_image, *python("pass"), resources={"limits": {"nvidia.com/gpu": count}}))
    eventually(lambda: phase(kubectl, "fits") == "Succeeded")

    def waiting() -> bool:
        conditions = kubectl.get("pod", "greedy")["status"].get("conditions", [])
        return any(item.get("reason") == "Unschedulable" and "Insufficient nvidia.com/gpu" in item["message"] for item in conditions)

    eventually(waiting)


def test_a_pod_may_read_the_keys_that_signed_its_own_token(kubectl: Kubectl, trainer_image: str) -> None:
    read = (
        "import json, ssl, urllib.request\n"
        "folder = '/var/run/secrets/kubernetes.io/serviceaccount/'\n"
        "token = open(folder + 'token').read()\n"
        "request = urllib.request.Request('https://kubernetes.default.svc/openid/v1/jwks', headers={'Authorization': 'Bearer ' + token})\n"
        "context = ssl.create_default_context(cafile=folder + 'ca.crt')\n"
        "print(urllib.request.urlopen(request, context=context).read().decode())\n"
        "print(token.split('.')[0])"
    )
    kubectl.apply(pod("reader", trainer_image, *python(read)))
    eventually(lambda: phase(kubectl, "reader") == "Succeeded")
    keys, header = kubectl("logs", "reader").split("\n")[:2]
    signed_with = json.loads(base64.urlsafe_b64decode(header + "=" * (-len(header) % 4)))
    assert signed_with["alg"] == "RS256"
    assert signed_with["kid"] in [key["kid"] for key in json.loads(keys)["keys"]]


@embedded_only
def test_the_audit_log_has_a_write_of_ours_and_no_reads(kubectl: Kubectl, namespace: str) -> None:
    kubectl("create", "configmap", "counted")
    kubectl("get", "configmap", "counted")

    def entries() -> list[Object]:
        lines = [line for line in places.AUDIT_LOG.read_text().splitlines() if f"/namespaces/{namespace}/configmaps" in line]
        return [entry for entry in map(json.loads, lines) if entry["objectRef"].get("name") == "counted"]

    ours = eventually(entries)
    assert [(entry["verb"], entry["user"]["username"], entry["level"]) for entry in ours] == [("create", "lepton-admin", "Metadata")]


@embedded_only
def test_a_claim_becomes_a_folder_that_two_pods_share_as_an_ordinary_user(kubectl: Kubectl, trainer_image: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shared"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    volumes = [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}]
    mounts = [{"name": "shared", "mountPath": "/shared"}]
    read = "import os, time\nwhile not os.path.exists('/shared/done'): time.sleep(0.05)\nprint(open('/shared/word').read())"
    write = "open('/shared/word', 'w').write('hello'); open('/shared/done', 'w')"
    kubectl.apply(
        claim,
        pod("reader", trainer_image, *python(read), volumes=volumes, mounts=mounts),
        pod("writer", trainer_image, *python(write), volumes=volumes, mounts=mounts),
    )
    eventually(lambda: phase(kubectl, "reader") == "Succeeded")
    assert kubectl("logs", "reader").strip() == "hello"
    volume = kubectl.get("persistentvolumeclaim", "shared")["spec"]["volumeName"]
    kubectl("delete", "pod", "reader", "writer")
    kubectl("delete", "persistentvolumeclaim", "shared")
    eventually(lambda: kubectl.run("get", "persistentvolume", volume).returncode != 0)
    assert not (places.STATE / "volumes" / volume).exists()


def test_prometheus_finds_an_annotated_pod_by_itself_and_keeps_the_pod_s_own_labels(
    kubectl: Kubectl, namespace: str, trainer_image: str
) -> None:
    serve = (
        "import http.server as h\n"
        "class H(h.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.send_header('Content-Type', 'text/plain; version=0.0.4'); self.end_headers()\n"
        "        self.wfile.write(b'proof{namespace=\"mine\"} 42\\n')\n"
        "h.HTTPServer(('', 9000), H).serve_forever()"
    )
    annotations = {"prometheus.io/scrape": "true", "prometheus.io/port": "9000"}
    kubectl.apply(pod("measured", trainer_image, *python(serve), annotations=annotations))
    running = daemons.running(prometheus.DAEMON)
    server = prometheus.start()
    try:
        found = eventually(lambda: server.query('proof{pod="measured"}'))
        assert [(labels["namespace"], value) for labels, value in found] == [("mine", 42.0)]
    finally:
        if not running:
            prometheus.stop()


@embedded_only
def test_fake_nodes_come_and_run_pods_and_go(kubectl: Kubectl) -> None:
    present = len(kubectl.get("nodes", "-l", "type=kwok")["items"])
    cluster("nodes", "--fake", str(present + 2))
    try:
        toleration = [{"key": "kwok.x-k8s.io/node", "operator": "Exists"}]
        paper = pod("paper", "example.org/none:1", "run", tolerations=toleration, nodeSelector={"type": "kwok"})
        kubectl.apply(paper)
        eventually(lambda: phase(kubectl, "paper") == "Running")
    finally:
        kubectl("delete", "pod", "paper", "--ignore-not-found", "--grace-period=0", "--force")
        cluster("nodes", "--fake", str(present))
    assert len(kubectl.get("nodes", "-l", "type=kwok")["items"]) == present


@embedded_only
def test_a_change_of_our_code_reaches_a_pod_within_30_s(kubectl: Kubectl, trainer_image: str, tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    for source in ("cluster", *images.SOURCES["operator"], *images.SOURCES["trainer"]):
        (copy / source).parent.mkdir(parents=True, exist_ok=True)
        if (CHECKOUT / source).is_dir():
            shutil.copytree(CHECKOUT / source, copy / source, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        else:
            shutil.copy(CHECKOUT / source, copy / source)
    proof = uuid.uuid4().hex
    (copy / "trainer_image/lepton_trainer/proof.py").write_text(f'PROOF = "{proof}"\n')
    started = time.monotonic()
    command = [sys.executable, "-m", "cluster", "images", "trainer"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    changed = json.loads(done.stdout)["trainer"]
    assert changed != trainer_image
    kubectl.apply(pod("changed", changed, *python("import lepton_trainer.proof as p; print(p.PROOF)")))
    eventually(lambda: phase(kubectl, "changed") == "Succeeded")
    assert kubectl("logs", "changed").strip() == proof
    assert time.monotonic() - started < 30
    assert json.loads(cluster("images", "trainer").stdout)["trainer"] == trainer_image  # `:dev` is this checkout's again


def test_an_image_is_pushed_to_a_registry_over_http(trainer_image: str, tmp_path: Path) -> None:
    with registry(tmp_path) as address:
        references = cluster("push", address, "--tag", "proof").stdout.split()
        assert references == [f"{address}/lepton/operator:proof", f"{address}/lepton/trainer:proof"]
        for target in images.TARGETS:
            with urllib.request.urlopen(f"http://{address}/v2/lepton/{target}/tags/list") as response:
                assert json.loads(response.read())["tags"] == ["proof"]
