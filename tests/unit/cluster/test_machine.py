"""Where the embedded cluster can't work it says what is missing; these are the reasons, each made by taking the thing away."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster import daemons, gotools, machine
from cluster.teardown import chain_removal
from cluster.terminal import Refused


def test_a_missing_program_is_named_where_there_is_no_apt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: None if program in ("apt-get", "runc") else "/bin/true")
    with pytest.raises(Refused, match=r"missing: runc; install them with this machine's package manager"):
        machine.install({"runc": "runc", "ip": "iproute2"})


def test_a_program_that_is_there_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is to be run"))
    machine.install({"sh": "dash"})
    assert shutil.which("sh")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("ip", "the kernel can't make a network bridge"),
        ("iptables", "iptables has no nat table"),
    ],
)
def test_a_kernel_without_the_networking_is_refused_by_name(missing: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_fails", lambda program, *_: program == missing)
    with pytest.raises(Refused, match=re.escape(message)):
        machine.require_network()


def test_an_ordinary_user_is_told_that_root_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Refused, match="needs root"):
        machine.require_root_and_kernel()


def test_an_unknown_tool_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(Refused, match=r"no tool is called 'hlem'; there are: etcd, .*helm.*prometheus"):
        gotools.tool("hlem")


def test_without_go_the_reason_is_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gotools, "TOOLS", tmp_path)
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(Refused, match="Go is not installed"):
        gotools.tool("kwok")
    assert not (tmp_path / "kwok-v0.7.0").exists()


def test_a_pid_that_another_process_got_is_not_taken_for_ours() -> None:
    ours = daemons.Process(os.getpid(), daemons.start_time(os.getpid()))
    assert daemons.alive(ours)
    assert not daemons.alive(ours._replace(started=ours.started - 1))


def test_a_process_that_waits_to_be_reaped_is_dead() -> None:
    child = subprocess.Popen(["sleep", "60"])
    process = daemons.Process(child.pid, daemons.start_time(child.pid))
    daemons.terminate([process], grace=5)
    assert not daemons.alive(process)
    assert Path(f"/proc/{child.pid}").exists()  # a zombie still
    child.wait()


def test_chains_of_kubernetes_go_and_other_people_s_rules_stay() -> None:
    saved = """# Generated
*nat
:PREROUTING ACCEPT [0:0]
:DOCKER - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-MARK-MASQ - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A PREROUTING -m comment --comment "not KUBE- at all" -j DOCKER
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-MARK-MASQ
COMMIT
*filter
:INPUT ACCEPT [0:0]
-A INPUT -p tcp -j ACCEPT
COMMIT
"""
    assert chain_removal(saved).splitlines() == [
        "*nat",
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-F KUBE-SERVICES",
        "-F KUBE-MARK-MASQ",
        "-X KUBE-SERVICES",
        "-X KUBE-MARK-MASQ",
        "COMMIT",
    ]
    assert chain_removal("*filter\n:INPUT ACCEPT [0:0]\nCOMMIT\n") == ""
