"""Checkpoints: what is damaged is noticed, marked, said, and the one before it used; what is stale writes nothing that counts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lepton_trainer.train.checkpoint import Checkpointer
from lepton_trainer.train.errors import Fenced, UserError

IDENTITY = {"model": {"width": 8}, "classes": 10, "seed": 1}


class Run:
    """One process's view of a checkpoint directory, with the events that it was told."""

    def __init__(self, path: Path, keep: int = 2, identity: dict[str, Any] = IDENTITY) -> None:
        self.events: list[tuple[str, str]] = []
        self.checkpoints = Checkpointer(str(path), identity, keep, lambda kind, message: self.events.append((kind, message)))
        self.tensors: dict[str, Tensor] = {"model.weight": torch.zeros(64, 32), "optimizer.weight.step": torch.zeros(())}

    def resume(self) -> dict[str, Any] | None:
        return self.checkpoints.restore(self.tensors)

    def save(self, step: int) -> None:
        self.tensors["model.weight"].fill_(float(step))
        self.tensors["optimizer.weight.step"].fill_(float(step))
        self.checkpoints.save(step, self.tensors, {"step": step})
        self.checkpoints.before_update()

    def saved(self, *steps: int) -> Run:
        self.resume()
        for step in steps:
            self.save(step)
        self.checkpoints.close()
        return self

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.events]


def folder(path: Path, step: int) -> Path:
    (found,) = path.glob(f"gen-*/step-{step:09d}")
    return found


def test_what_is_saved_comes_back_with_every_bit(tmp_path: Path) -> None:
    first = Run(tmp_path)
    assert first.resume() is None
    first.tensors["model.weight"] = original = torch.randn(64, 32)
    first.checkpoints.save(7, first.tensors, {"step": 7, "consumed": 91})
    first.checkpoints.close()
    second = Run(tmp_path)
    assert second.resume() == {"step": 7, "consumed": 91}
    assert torch.equal(second.tensors["model.weight"], original)
    assert second.kinds() == ["Resumed"] and "step 7" in second.events[0][1]


def test_a_checkpoint_holds_the_state_of_its_step_though_training_goes_on(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=10)
    run.resume()
    for step in range(1, 6):
        run.save(step)
        run.tensors["model.weight"].fill_(-1.0)
    run.checkpoints.close()
    second = Run(tmp_path)
    second.resume()
    assert (second.tensors["model.weight"] == 5.0).all()


def test_the_newest_is_chosen_by_number_and_strays_are_never_chosen(tmp_path: Path) -> None:
    Run(tmp_path, keep=2).saved(80, 90, 100, 110)
    (tmp_path / "latest.bak").mkdir()
    (tmp_path / "gen-1" / "step-000009999").mkdir()
    (tmp_path / "gen-1" / "step-bad").mkdir()
    assert sorted(p.parent.name for p in tmp_path.glob("gen-*/step-*/manifest.json")) == ["step-000000100", "step-000000110"]
    second = Run(tmp_path)
    assert second.resume() == {"step": 110}


def truncate(folder: Path) -> None:
    file = next(folder.glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-100])


def flip(folder: Path) -> None:
    file = next(folder.glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose(folder: Path) -> None:
    next(folder.glob("*.distcp")).unlink()


def lose_metadata(folder: Path) -> None:
    (folder / ".metadata").unlink()


def cut_manifest(folder: Path) -> None:
    manifest = folder / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:40])


@pytest.mark.parametrize("damage", [truncate, flip, lose, lose_metadata, cut_manifest])
def test_a_damaged_checkpoint_is_marked_and_said_and_the_one_before_it_used(damage: Callable[[Path], None], tmp_path: Path) -> None:
    Run(tmp_path).saved(10, 20)
    damage(folder(tmp_path, 20))
    second = Run(tmp_path)
    assert second.resume() == {"step": 10}
    assert (second.tensors["model.weight"] == 10.0).all()
    assert second.kinds() == ["CheckpointDamaged", "Resumed"] and "step 20" in second.events[0][1]
    assert json.loads((folder(tmp_path, 20) / "DAMAGED.json").read_text())["reason"]
    third = Run(tmp_path)
    assert third.resume() == {"step": 10} and third.kinds() == ["Resumed"], "what is marked is not read again"


def test_a_half_written_checkpoint_counts_as_none(tmp_path: Path) -> None:
    Run(tmp_path).saved(10, 20)
    (folder(tmp_path, 20) / "manifest.json").unlink()
    second = Run(tmp_path)
    assert second.resume() == {"step": 10} and second.kinds() == ["Resumed"]


def test_where_all_are_damaged_the_run_ends_and_nothing_is_lost(tmp_path: Path) -> None:
    Run(tmp_path).saved(10, 20)
    for step in (10, 20):
        flip(folder(tmp_path, step))
    with pytest.raises(UserError, match="all 2 checkpoints are damaged"):
        Run(tmp_path).resume()
    assert len(list(tmp_path.glob("gen-*/step-*/*.distcp"))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"width": 16}}, "model {'width': 8} there, {'width': 16} here"),
        ({"seed": 2}, "seed 1 there, 2 here"),
        ({"classes": 12}, "classes 10 there, 12 here"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_and_left_alone(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    Run(tmp_path).saved(10)
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        Run(tmp_path, identity={**IDENTITY, **change}).resume()
    assert message in str(caught.value) and "nothing was overwritten" in str(caught.value)
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_a_real_full_disk_is_named_with_what_is_free_and_what_is_needed(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root; another test has a file size limit instead")
    try:
        run = Run(disk).saved(10)
        filler = disk / "filler"
        filler.write_bytes(bytes(shutil.disk_usage(disk).free - 4096))
        run.save(20)
        run.checkpoints.wait()
        assert run.kinds() == ["CheckpointSaved", "CheckpointFailed"] and "MB free, 0.0 MB needed" in run.events[1][1]
        assert not list(disk.glob("gen-*/step-000000020"))
        filler.unlink()
        run.save(30)
        run.checkpoints.close()
        assert Run(disk).resume() == {"step": 30}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path: Path, full_disk: Callable[[bool], None]) -> None:
    run = Run(tmp_path).saved(10)
    full_disk(True)
    run.save(20)
    run.checkpoints.wait()
    full_disk(False)
    assert run.kinds() == ["CheckpointSaved", "CheckpointFailed"] and "step 20 is not saved, training goes on" in run.events[1][1]
    assert run.checkpoints.timing.failed == 1
    assert not list(tmp_path.glob("gen-*/step-000000020")), "what was half written is cleared away"
    run.save(30)
    run.checkpoints.close()
    assert Run(tmp_path).resume() == {"step": 30}


def test_a_stale_generation_commits_nothing_and_deletes_nothing(tmp_path: Path) -> None:
    stale = Run(tmp_path, keep=1).saved(10)
    fresh = Run(tmp_path)
    fresh.resume()
    stale.save(20)
    with pytest.raises(Fenced, match="generation 2 has begun, this is generation 1"):
        stale.checkpoints.close()
    assert folder(tmp_path, 10).exists() and not list(tmp_path.glob("gen-1/step-000000020/manifest.json"))
    fresh.save(20)
    fresh.checkpoints.close()
    assert Run(tmp_path).resume() == {"step": 20}


def test_a_commit_of_a_stale_generation_that_slipped_through_is_not_in_the_line(tmp_path: Path) -> None:
    stale = Run(tmp_path).saved(10)
    copy = tmp_path.parent / "start.json"
    fresh = Run(tmp_path)
    fresh.resume()
    shutil.move(tmp_path / "gen-2" / "start.json", copy)
    (tmp_path / "gen-2").rmdir()
    stale.save(20)
    stale.checkpoints.close()
    (tmp_path / "gen-2").mkdir()
    shutil.move(copy, tmp_path / "gen-2" / "start.json")
    assert Run(tmp_path).resume() == {"step": 10}


def test_a_process_of_an_older_generation_of_the_same_job_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_JOB_UID", "abc")
    monkeypatch.setenv("LEPTON_GENERATION", "5")
    Run(tmp_path).saved(10)
    monkeypatch.setenv("LEPTON_GENERATION", "4")
    with pytest.raises(Fenced, match="generation 5 has begun, this is generation 4"):
        Run(tmp_path).resume()
    monkeypatch.setenv("LEPTON_JOB_UID", "another")
    assert Run(tmp_path).resume() == {"step": 10}, "a new job that finds an earlier one's checkpoints goes on from them"


def test_a_commit_is_created_and_never_replaced(tmp_path: Path) -> None:
    run = Run(tmp_path).saved(10)
    before = (folder(tmp_path, 10) / "manifest.json").read_bytes()
    assert not run.checkpoints.storage.create("gen-1/step-000000010/manifest.json", b"{}")
    assert (folder(tmp_path, 10) / "manifest.json").read_bytes() == before
    assert not list(tmp_path.rglob(".new-*"))


def test_old_generations_go_when_nothing_kept_needs_them(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        Run(tmp_path, keep=2).saved(step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gen-3", "gen-4"]
    assert Run(tmp_path).resume() == {"step": 40}


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        Checkpointer(str(tmp_path / "file" / "x"), IDENTITY)


def test_an_unknown_kind_of_url_is_named() -> None:
    with pytest.raises(UserError, match="s3://bucket/prefix"):
        Checkpointer("gopher://somewhere/x", IDENTITY)


def test_an_object_store_keeps_the_same_promises(tmp_path: Path) -> None:
    """fsspec's in-memory file system stands for any that has conditional creation; the proof runs against a real S3 server."""
    url = f"memory://{tmp_path.name}"
    for step in (10, 20, 30):
        Run(url, keep=2).saved(step)  # type: ignore[arg-type]
    storage = Run(url).checkpoints.storage  # type: ignore[arg-type]
    assert storage.names("") == ["gen-2", "gen-3"]
    assert not storage.create("gen-3/start.json", b"{}")
    broken = Run(url)  # type: ignore[arg-type]
    name = next(n for n in storage.names("gen-3/step-000000030") if n.endswith("distcp"))
    storage.files.pipe_file(storage._full(f"gen-3/step-000000030/{name}"), b"nothing")  # type: ignore[attr-defined]
    assert broken.resume() == {"step": 20}
    assert broken.kinds() == ["CheckpointDamaged", "Resumed"]
