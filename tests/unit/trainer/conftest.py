"""What all tests of the trainer share: one cache, one text, one thread."""

from __future__ import annotations

from collections.abc import Iterator
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
