"""Which cluster is chosen, and what Docker and kind are asked for; programs that write down their calls stand in for both."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[3]
STUBS = {
    "docker": 'test "$1" != info || test -e "$STUB_LOG.docker"',
    "kind": 'test "$1 $2" != "get clusters" || cat "$STUB_LOG.clusters" 2>/dev/null || true',
    "kubectl": 'case "$*" in *readyz*) printf ok ;; *"get nodes"*) echo node/lepton-control-plane ;; esac',
}


class Machine:
    """A machine with stand-ins for Docker, kind and kubectl, and a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "calls"
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "LEPTON_KUBECONFIG"},
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "LEPTON_CACHE": str(folder / "cache"),
            "STUB_LOG": str(self.log),
        }
        (folder / "bin").mkdir()
        for name, behaviour in STUBS.items():
            program = folder / "bin" / name
            program.write_text(f'#!/bin/sh\necho "{name} $*" >> "$STUB_LOG"\n{behaviour}\n')
            program.chmod(0o755)

    def with_docker(self) -> "Machine":
        self.log.with_suffix(".docker").touch()
        return self

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cluster", *arguments]
        return subprocess.run(command, cwd=CHECKOUT, env=self.environment, capture_output=True, text=True, check=False)

    def calls(self, of: str) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if line.startswith(of)]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_kind_serves_where_docker_answers(machine: Machine) -> None:
    done = machine.with_docker().run("up")
    assert done.returncode == 0, done.stderr
    kubeconfig = f"{machine.environment['LEPTON_CACHE']}/cluster/kubeconfig"
    assert machine.calls("kind")[-1] == f"kind create cluster --name lepton --kubeconfig {kubeconfig} --wait 120s"
    (patch,) = [call for call in machine.calls("kubectl") if " patch " in call]
    assert "node/lepton-control-plane" in patch and "nvidia.com~1gpu" in patch
    assert f"export KUBECONFIG={kubeconfig}" in done.stderr


def test_a_kind_cluster_that_is_there_is_kept(machine: Machine) -> None:
    machine.log.with_suffix(".clusters").write_text("lepton\n")
    assert machine.with_docker().run("up").returncode == 0
    assert not [call for call in machine.calls("kind") if "create" in call]
    assert machine.calls("kind")[-1].startswith("kind export kubeconfig --name lepton")


def test_on_kind_images_are_built_by_docker_and_loaded_under_both_tags(machine: Machine) -> None:
    machine.with_docker().run("up")
    kubeconfig = Path(machine.environment["LEPTON_CACHE"], "cluster/kubeconfig")
    kubeconfig.write_text("{}")  # as kind would
    done = machine.run("images", "trainer")
    assert done.returncode == 0, done.stderr
    name = json.loads(done.stdout)["trainer"]
    assert f"docker build --quiet --target trainer --tag {name} {CHECKOUT}" in machine.calls("docker build")
    assert machine.calls("kind load") == [f"kind load docker-image --name lepton {name} lepton/trainer:dev"]


def test_down_deletes_the_kind_cluster(machine: Machine) -> None:
    assert machine.with_docker().run("down").returncode == 0
    assert machine.calls("kind") == ["kind delete cluster --name lepton"]


def test_a_named_kubeconfig_comes_before_docker(machine: Machine, tmp_path: Path) -> None:
    named = tmp_path / "theirs"
    named.write_text("{}")
    machine.environment["LEPTON_KUBECONFIG"] = str(named)
    done = machine.with_docker().run("up")
    assert done.returncode == 0, done.stderr
    assert f"export KUBECONFIG={named}" in done.stderr
    assert not machine.calls("kind")
    refused = machine.run("images")
    assert refused.returncode == 1 and "make push REGISTRY=" in refused.stderr


def test_docker_that_is_installed_and_does_not_answer_is_no_reason_for_kind(machine: Machine) -> None:
    done = machine.run("status")
    assert "embedded in this machine: down" in done.stdout
    assert not machine.calls("kind")
