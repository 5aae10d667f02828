"""The init container's copy of the agent: whole and readable by everyone, or one sentence that says why not."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lepton_trainer.agent import install as module
from lepton_trainer.agent.__main__ import main

SOURCE = Path(__file__).resolve().parents[3] / "trainer_image"


def test_the_copy_runs_by_itself_and_replaces_an_older_one(tmp_path: Path) -> None:
    older = tmp_path / "lepton_trainer"
    older.mkdir()
    (older / "gone.py").write_text("")
    assert main(["install", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["lepton_trainer"] and not (older / "gone.py").exists()
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in older.rglob("*"))
    done = subprocess.run([sys.executable, "-I", str(older / "agent")], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith("usage:")


@pytest.mark.parametrize("what", ["a file", "below a file"])
def test_a_folder_that_cannot_be_written_is_one_sentence_and_no_traceback(tmp_path: Path, what: str) -> None:
    (tmp_path / "taken").write_text("")
    target = tmp_path / "taken" if what == "a file" else tmp_path / "taken" / "below"
    command = [sys.executable, "-P", "-m", "lepton_trainer.agent", "install", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(SOURCE)})
    assert done.returncode == 1
    assert done.stderr.startswith(f"lepton agent: the agent cannot be copied to {target} (") and done.stderr.count("\n") == 1


def test_a_folder_that_fills_up_is_told_and_nothing_half_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(source: Any, destination: Any, **_: Any) -> None:
        Path(destination).mkdir()
        raise shutil.Error([(str(source), str(destination), os.strerror(errno.ENOSPC))])

    monkeypatch.setattr(module.shutil, "copytree", full)
    (tmp_path / "lepton_trainer").mkdir()
    assert main(["install", str(tmp_path)]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["lepton_trainer"], "the older one stays"
