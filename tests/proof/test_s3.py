"""Checkpoints in a real S3 server: conditional commits, damage, resuming, and an endpoint that goes away."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import trainer_group
import trainer_runs as runs
from lepton_trainer.train.checkpoint import Checkpointer
from lepton_trainer.train.errors import Unreachable
from lepton_trainer.train.storage import RemoteStorage

BUCKET = "checkpoints"


class Server:
    """versitygw over a folder on loopback; it can be stopped and started again on the same port."""

    def __init__(self, program: Path, base: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder, self.program, self.process = base / "store", program, None
        (self.folder / BUCKET).mkdir(parents=True)
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        command = [
            str(self.program),
            "--access",
            "proof",
            "--secret",
            "proofproof",
            "--port",
            f"127.0.0.1:{self.port}",
            "posix",
            str(self.folder),
        ]
        self.process: subprocess.Popen[bytes] | None = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            assert time.monotonic() < deadline and self.process.poll() is None
            time.sleep(0.05)

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="module")
def server(s3_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(s3_server, tmp_path_factory.mktemp("s3"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "proof")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "proofproof")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", found.url)
        patch.setenv("AWS_MAX_ATTEMPTS", "2")
        yield found
    found.stop()


def test_a_commit_is_created_once(server: Server) -> None:
    storage = RemoteStorage(f"s3://{BUCKET}/once")
    assert storage.create("gen-1/start.json", b"first")
    assert not storage.create("gen-1/start.json", b"second")
    assert storage.read("gen-1/start.json") == b"first" and storage.names("") == ["gen-1"]
    storage.delete("gen-1")
    assert storage.names("") == []


def test_a_run_of_two_processes_is_killed_and_goes_on_with_one_with_the_same_losses(server: Server, text: Path, tmp_path: Path) -> None:
    local = runs.language(text, tmp_path / "local")
    trainer_group.run(2, runs.train, local)
    there = {"path": f"s3://{BUCKET}/run", "everySteps": 5, "keep": 2}
    remote = runs.language(text, tmp_path, checkpoint=there, output={"directory": str(tmp_path / "remote")})
    environment = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    with (
        trainer_group.Group(2, runs.train_and_die, remote, 1, 13, environment=environment) as group,
        pytest.raises((ChildProcessError, RuntimeError)),
    ):
        group.results()
    trainer_group.run(2, runs.train, remote, environment=environment)
    assert runs.losses(tmp_path / "local") == runs.losses(tmp_path / "remote")
    kept = sorted(path.parent.name for path in (server.folder / BUCKET / "run").glob("gen-*/step-*/manifest.json"))
    assert kept == ["step-000000015", "step-000000020"]


def test_damage_is_noticed_and_a_lost_endpoint_costs_a_checkpoint_and_not_the_run(server: Server) -> None:
    events: list[tuple[str, str]] = []

    def open_run() -> tuple[Checkpointer, dict[str, torch.Tensor]]:
        return Checkpointer(f"s3://{BUCKET}/damage", {"seed": 1}, 3, lambda kind, text: events.append((kind, text))), {
            "w": torch.zeros(64, 64)
        }

    checkpoints, tensors = open_run()
    assert checkpoints.restore(tensors) is None
    for step in (1, 2):
        tensors["w"].fill_(float(step))
        checkpoints.save(step, tensors, {"step": step})
        checkpoints.before_update()
    checkpoints.wait()
    server.stop()
    checkpoints.save(3, tensors, {"step": 3})
    checkpoints.close()
    assert [kind for kind, _ in events] == ["CheckpointSaved", "CheckpointSaved", "CheckpointFailed"]
    with pytest.raises(Unreachable, match=r"cannot be reached: .*See that the endpoint \(AWS_ENDPOINT_URL\)"):
        Checkpointer(f"s3://{BUCKET}/other", {})
    server.start()
    checkpoints.save(4, tensors, {"step": 4})
    checkpoints.close()
    assert events[-1][0] == "CheckpointSaved"

    (file,) = (server.folder / BUCKET / "damage").glob("gen-1/step-000000004/*.distcp")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    checkpoints, tensors = open_run()
    assert checkpoints.restore(tensors) == {"step": 2} and (tensors["w"] == 2.0).all()
    assert [kind for kind, _ in events[-2:]] == ["CheckpointDamaged", "Resumed"]
