"""The operator as its users have it: our chart, installed by real Helm, run in the cluster from its image under its own service account."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import host_processes
from cluster import gotools
from kube import Kubectl, Object, eventually

CHECKOUT = Path(__file__).parents[1]
CHART = CHECKOUT / "charts" / "lepton-operator"
CRD = "leptontrainingjobs.training.lepton.ai"


@dataclass
class Installation:
    """One release in one namespace. `watched` empty: it serves the whole cluster."""

    kubeconfig: Path
    namespace: str
    images: dict[str, str]
    watched: tuple[str, ...] = ()
    replicas: int = 1
    release: str = "lepton"

    @property
    def kubectl(self) -> Kubectl:
        return Kubectl(self.kubeconfig, self.namespace)

    @property
    def deployment(self) -> str:
        """Helm's way: the chart's name is added where the release's does not hold it."""
        return self.release if "lepton" in self.release else f"{self.release}-lepton"

    @property
    def manager(self) -> str:
        """What it claims jobs with."""
        return f"{self.namespace}/{self.release}"

    def helm(self, *arguments: str) -> str:
        command = [str(gotools.tool("helm")), f"--kubeconfig={self.kubeconfig}", f"--namespace={self.namespace}", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, f"helm {' '.join(arguments)}: {done.stderr.strip()}\n{self.log_tail()}"
        return done.stdout

    def install(self) -> None:
        """Installs it and waits until every replica is Ready and one of them leads."""
        everywhere = Kubectl(self.kubeconfig)
        if self.watched:  # by whoever may; this checkout's, whatever was there before
            file = CHECKOUT / "crds" / "leptontrainingjobs.training.lepton.ai.yaml"
            everywhere("apply", "--server-side", "--force-conflicts", "-f", str(file))
        scope = ["--set", f"watchNamespaces={{{','.join(self.watched)}}}"] if self.watched else ["--take-ownership"]
        names = ["--set", f"image.operator={self.images['operator']},image.trainer={self.images['trainer']},replicas={self.replicas}"]
        scraped = ["--set-string", r"podAnnotations.prometheus\.io/scrape=true,podAnnotations.prometheus\.io/port=8080"]
        self.helm("install", self.release, str(CHART), *names, *scope, *scraped, "--create-namespace", "--wait", "--timeout=90s")
        eventually(self.leader, 30)

    def uninstall(self) -> None:
        self.helm("uninstall", self.release, "--wait", "--timeout=60s")

    def pods(self) -> list[Object]:
        """The operator's pods that are not on their way out."""
        items = self.kubectl.get("pods", "-l", "app.kubernetes.io/component=operator")["items"]
        return [pod for pod in items if "deletionTimestamp" not in pod["metadata"]]

    def lease(self) -> Object:
        found = self.kubectl.run("get", "lease", f"{self.release}.training.lepton.ai", "-o", "json")
        spec: Object = json.loads(found.stdout)["spec"] if found.returncode == 0 else {}
        return spec

    def leader(self) -> str:
        """The identity in the Lease; empty where nobody holds it."""
        return str(self.lease().get("holderIdentity") or "")

    def leader_pod(self) -> Object:
        """The pod of whoever leads; waits for one."""

        def found() -> Object | None:
            holder = self.leader()
            return next((pod for pod in self.pods() if holder.startswith(pod["metadata"]["name"])), None) if holder else None

        pod: Object = eventually(found, 40)
        return pod

    def leader_pid(self) -> int:
        """The host's pid of the leading operator process."""
        return host_processes.operator_of_pod(self.leader_pod()["metadata"]["uid"])

    def scale(self, replicas: int) -> None:
        """Brings the Deployment to so many replicas, and waits until they are Ready (or gone)."""
        self.kubectl("scale", f"deployment/{self.deployment}", f"--replicas={replicas}")
        if replicas:
            self.ready(replicas)
        else:
            eventually(lambda: not self.kubectl.get("pods", "-l", "app.kubernetes.io/component=operator")["items"], 60)

    def ready(self, replicas: int | None = None) -> None:
        """Waits until so many replicas are Ready and one leads."""
        wanted = self.replicas if replicas is None else replicas

        def all_ready() -> bool:
            status: dict[str, Any] = self.kubectl.get("deployment", self.deployment)["status"]
            return status.get("readyReplicas", 0) == wanted and len(self.pods()) == wanted

        eventually(all_ready, 90)
        eventually(self.leader, 30)

    def log(self) -> str:
        """What all replicas wrote, the containers that ended before included."""
        told = []
        for pod in self.pods():
            for previous in ("--previous=true", "--previous=false"):
                told.append(self.kubectl.run("logs", pod["metadata"]["name"], previous).stdout)
        return "".join(told)

    def log_tail(self, about: str = "", lines: int = 40) -> str:
        """The last lines of the log, those that name `about` if it is given."""
        return "\n".join([line for line in self.log().splitlines() if about in line][-lines:])
