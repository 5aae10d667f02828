"""`make demo`, as a new user types it: `examples/digits.yaml` unchanged, and what it shows is true. It claims every job that there is."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import gotools, places, substrate
from kube import Kubectl

CHECKOUT = Path(__file__).parents[2]
ACCURACY = 0.97
PATIENCE_SECONDS = 900


@pytest.fixture
def demonstrated() -> Iterator[str]:
    """What `make demo` printed; what it installed is gone afterwards."""
    assert substrate.choose() == substrate.EMBEDDED, "this test is about the embedded cluster"
    done = subprocess.run(
        [sys.executable, "-m", "demo.on_cluster"], cwd=CHECKOUT, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    yield told
    environment = {**os.environ, "KUBECONFIG": str(places.KUBECONFIG)}
    uninstall = [str(gotools.tool("helm")), "uninstall", "lepton", "--namespace", "lepton-system", "--wait"]
    subprocess.run(uninstall, env=environment, check=True, capture_output=True)
    Kubectl(places.KUBECONFIG)("delete", "namespace", "lepton-demo", "lepton-system", "--wait=true", "--timeout=120s", timeout=130)


def test_the_demo_loses_worker_0_in_the_middle_and_learns_the_digits_all_the_same(demonstrated: str) -> None:
    assert re.search(r"kubectl delete pod digits-0-\w{5}", demonstrated), demonstrated
    assert re.search(r"the others stepped again after +\d+\.\d\d s\n", demonstrated), demonstrated
    assert re.search(r"samples lost +0\n", demonstrated), demonstrated
    assert re.search(r"samples computed again +\d+\n", demonstrated), demonstrated
    states = set(re.findall(r"\n +digits +(\w+) ", demonstrated))
    assert {"Running", "Complete"} <= states, demonstrated
    answers = re.findall(r"\n +\w+ by \(job_name\).* (no answer|[\d.e+-]+)(?: samples/s| steps by one worker)?(?=\n)", demonstrated)
    assert len(answers) == 3 and all(float(answer) > 0 for answer in answers), demonstrated
    (accuracy,) = re.findall(r"held-out accuracy ([\d.]+)", demonstrated)
    assert float(accuracy) >= ACCURACY
