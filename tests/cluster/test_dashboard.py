"""Every panel's query of the dashboard is put to a real Prometheus, and the panels of a job that trains show something."""

import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import prometheus
from installation import CHECKOUT, Installation
from kube import eventually
from plain_trainings import is_complete, train

board = runpy.run_path(str(CHECKOUT / "charts" / "dashboard.py"))
# Nothing fails, ends or is deleted in this test, and its script counts no tokens; the built-in trainer has a test of its own.
EMPTY = {"Mean recovery", "Restarts", "Recovery time", "Non-finite losses", "Jobs ended", "Tokens"}
EMPTY |= {"Held-out data", "Learning rate", "Gradient norm", "MFU", "Waiting for data", "Memory", "Checkpoints"}


@pytest.fixture(scope="module")
def running(kubeconfig: Path) -> prometheus.Prometheus:
    """The tests' Prometheus; it stays up with the cluster."""
    return prometheus.start()


@pytest.fixture
def lepton(kubeconfig: Path, namespace: str) -> Iterator[Installation]:
    done = subprocess.run([sys.executable, "-m", "cluster", "images"], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=True)
    installation = Installation(kubeconfig, namespace, json.loads(done.stdout), watched=(namespace,))
    installation.install()
    yield installation
    installation.uninstall()


@pytest.mark.parametrize(("title", "query"), board["queries"](), ids=lambda part: str(part)[:40])
def test_prometheus_understands_the_query_of_a_panel(running: prometheus.Prometheus, title: str, query: str) -> None:
    running.query(query)  # raises Refused, with Prometheus' words, when it does not


def test_the_panels_of_a_job_that_trains_show_it(running: prometheus.Prometheus, kubeconfig: Path, lepton: Installation) -> None:
    job = train(kubeconfig, lepton.namespace, "shown", steps=400)

    def silent() -> list[str]:
        assert not is_complete(job)
        asked = board["queries"](namespace=lepton.namespace)
        return sorted({title for title, query in asked if title not in EMPTY and not running.query(query)})

    eventually(lambda: not silent(), timeout=90, interval=1)
