"""What the kernel says of our share of the machine."""

import errno
import os
from pathlib import Path

import pytest

from lepton_trainer.agent import processes
from lepton_trainer.agent.processes import cpu_quota


@pytest.mark.parametrize(
    ("membership", "files", "cpus"),
    [
        ("0::/pod\n", {"pod/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/elsewhere\n", {"cpu.max": "200000 100000\n"}, 2.0),
        ("0::/pod\n", {"pod/cpu.max": "max 100000\n"}, None),
        ("3:cpu,cpuacct:/pod\n", {"cpu/pod/cpu.cfs_quota_us": "50000\n", "cpu/pod/cpu.cfs_period_us": "100000\n"}, 0.5),
        ("3:cpu:/pod\n", {"cpu/pod/cpu.cfs_quota_us": "-1\n", "cpu/pod/cpu.cfs_period_us": "100000\n"}, None),
        ("garbage\n", {}, None),
    ],
)
def test_the_cpu_limit_of_our_cgroup_is_read(tmp_path: Path, membership: str, files: dict[str, str], cpus: float | None) -> None:
    (tmp_path / "membership").write_text(membership)
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    assert cpu_quota(tmp_path / "root", tmp_path / "membership") == cpus


def test_a_fork_that_the_kernel_refuses_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    before = set(Path("/proc/self/fd").iterdir())
    with pytest.raises(BlockingIOError):
        processes.spawn(["true"], {}, 0, 1, 2)
    assert set(Path("/proc/self/fd").iterdir()) == before
