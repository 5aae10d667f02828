"""What all tests of the trainer share: one cache, one text, one thread."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import trainer_runs


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    torch.set_num_threads(1)  # threads that spin for one another are slower than one where cores are shared
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEPTON_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainer_runs.text_folder(tmp_path_factory.mktemp("text"))


@pytest.fixture
def full_disk() -> Iterator[Callable[[bool], None]]:
    """Call with True, and no file can grow beyond 4 KiB; the kernel's own refusal."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def switch(full: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096 if full else soft, hard))

    yield switch
    switch(False)
