"""Every panel's query of the dashboard is put to a real Prometheus."""

import runpy
from pathlib import Path

import pytest

from cluster import prometheus

board = runpy.run_path(str(Path(__file__).parents[2] / "charts" / "dashboard.py"))


@pytest.fixture(scope="module")
def running(kubeconfig: Path) -> prometheus.Prometheus:
    """The tests' Prometheus; it stays up with the cluster."""
    return prometheus.start()


@pytest.mark.parametrize(("title", "query"), board["queries"](), ids=lambda part: str(part)[:40])
def test_prometheus_understands_the_query_of_a_panel(running: prometheus.Prometheus, title: str, query: str) -> None:
    running.query(query)  # raises Refused, with Prometheus' words, when it does not
