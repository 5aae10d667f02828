"""Small runs of the built-in trainer for tests, and what they leave behind."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import Any

from lepton_trainer.train.config import TaskConfig, parse
from lepton_trainer.train.settings.language_modeling import LanguageModeling

TEXT = "the rank that is lost comes back and each sample is used once per epoch whatever happens to the group on its way"
WORDS = TEXT.split()


def text_folder(base: Path, files: int = 24, words: int = 300) -> Path:
    """A folder of deterministic text."""
    base.mkdir(parents=True, exist_ok=True)
    for index in range(files):
        chosen = hashlib.sha256(str(index).encode()).digest() * (words // 32 + 1)
        (base / f"{index:03}.txt").write_text(" ".join(WORDS[byte % len(WORDS)] for byte in chosen[:words]))
    return base


def language(text: Path, out: Path, **sections: Any) -> TaskConfig:
    """A language model of 0.8 M weights on `text`, 20 steps, everything about every step written down."""
    settings: dict[str, Any] = {
        "data": {"source": "folder", "path": str(text), "tokenizer": "bytes", "testFraction": 0.1},
        "model": {"preset": "1M", "context": 16},
        "training": {"steps": 20, "globalBatch": 13, "seed": 3},
        "optimizer": {"learningRate": 0.001},  # three times as much is chaotic here: rounding grows to 1e-5 within 50 steps
        "checkpoint": {"path": str(out), "everySteps": 10, "keep": 10},
        "output": {"everySteps": 1, "plots": False, "ledger": True},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return parse({"languageModeling": settings})


def digits(out: Path, **sections: Any) -> TaskConfig:
    """A small CNN on digits."""
    settings: dict[str, Any] = {
        "model": {"width": 8, "stages": 2},
        "training": {"steps": 20, "globalBatch": 30},
        "checkpoint": {"path": str(out), "everySteps": 10},
        "output": {"everySteps": 1, "plots": False, "ledger": True},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    return parse({"imageClassification": settings})


def train(config: TaskConfig) -> dict[str, float]:
    """What a rank of a test runs; returns the figures on held-out data."""
    from lepton_trainer.train import loop

    return loop.train(config).figures


def train_and_die(config: TaskConfig, rank: int, step: int) -> None:
    """Train, but SIGKILL this process after step `step` if it is rank `rank`."""
    from lepton_trainer.train import loop
    from lepton_trainer.train.reporting import Journal

    stepped = Journal.stepped

    def dying(self: Journal, now: int, samples: int, tokens: int) -> None:
        stepped(self, now, samples, tokens)
        if now == step and os.environ.get("RANK", "0") == str(rank):
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.stepped = dying  # type: ignore[method-assign]
    loop.train(config)


def history(out: Path) -> list[dict[str, Any]]:
    """The rows that a run wrote, oldest first."""
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    """The loss of each step."""
    return {row["step"]: row["loss"] for row in history(out) if "loss" in row}


def weights(out: Path, config: TaskConfig, step: int) -> dict[str, Any]:
    """The tensors of the checkpoint of `step`, by name."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    assert isinstance(config, LanguageModeling) or config
    (folder,) = [path.parent for path in out.glob(f"gen-*/step-{step:09d}/manifest.json")][-1:]
    whole = folder.parent.parent / f".whole-{step}.pt"
    dcp_to_torch_save(folder, whole)
    found: dict[str, Any] = torch.load(whole)
    whole.unlink()
    return found


def committed(out: Path) -> dict[int, list[tuple[int, int]]]:
    """From the ledgers: the (epoch, sample) pairs of each committed step.

    The newest generation's steps count, and of the one that it resumed from those up to that step, and so on back.
    """
    starts: dict[int, dict[str, int] | None] = {}
    rows: dict[int, dict[int, list[tuple[int, int]]]] = {}
    for ledger in out.glob("ledger-*.jsonl"):
        for line in ledger.read_text().splitlines():
            row = json.loads(line)
            if "resume" in row:
                starts[row["generation"]] = row["resume"]
                continue
            used = rows.setdefault(row["generation"], {}).setdefault(row["step"], [])
            used += zip(row["epochs"], row["samples"], strict=True)
    steps: dict[int, list[tuple[int, int]]] = {}
    generation: int | None = max(starts)
    limit = 10**9
    while generation is not None:
        for step, used in rows.get(generation, {}).items():
            if step <= limit:
                assert step not in steps
                steps[step] = used
        resume = starts[generation]
        generation, limit = (resume["generation"], min(limit, resume["step"])) if resume else (None, 0)
    return steps


def train_and_tell(config: TaskConfig) -> tuple[int, bool, bool]:
    """Train, and return the step it ended with, whether it finished and whether a SIGTERM ended it."""
    from lepton_trainer.train import loop

    result = loop.train(config)
    return result.step, result.finished, result.terminated
