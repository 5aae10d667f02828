"""What tests against a real cluster speak with: kubectl, and patience that ends when a condition holds."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
        command = [substrate.kubectl_program(), f"--kubeconfig={self.kubeconfig}", *where, *arguments]
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
