"""Pictures of an evaluation: each task gets those that suit it, their numbers are scikit-learn's, and one that fails costs no other."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics

import trainer_runs as runs
from lepton_trainer.train import looks, tasks
from lepton_trainer.train.tasks import Task


def labelled(labels: list[str], **more: Any) -> Task:
    return cast(Task, SimpleNamespace(preprocessing={"labels": labels}, **more))


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def outputs_of(task: Task) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    inputs, targets = task.test_batch(0, task.test_size)
    with torch.no_grad():
        return task.model().eval()(inputs), targets


def is_picture(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.format == "PNG" and len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_images_get_confusion_curves_and_a_grid_of_what_went_wrong(tmp_path: Path) -> None:
    task = tasks.build(runs.digits(tmp_path / "run"))
    outputs, targets = outputs_of(task)
    looks.draw(task, outputs, targets, tmp_path)
    found = names(tmp_path)
    assert found == {"confusion.png", "roc.png", "precision-recall.png", "wrong.png", "wrong.txt"}
    assert all(is_picture(tmp_path / name) for name in found if name.endswith(".png"))
    wrong = int((outputs.argmax(dim=1) != targets).sum())
    assert (tmp_path / "wrong.txt").read_text().startswith(f"{wrong} of {len(targets)} held-out samples")


def test_what_went_wrong_is_told_with_its_text_the_surest_first(tmp_path: Path) -> None:
    texts = ["first text", "a second\n text", "third", "fourth"]
    task = labelled(["ham", "spam"], excerpt=lambda index: texts[index])
    looks.draw(task, torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 4.0], [0.0, 3.0]]), torch.tensor([0, 0, 0, 1]), tmp_path)
    assert (tmp_path / "wrong.txt").read_text().splitlines() == [
        "2 of 4 held-out samples are taken for another class; the 2 surest of them:",
        "2: is ham, taken for spam (0.98)",
        "    third",
        "1: is ham, taken for spam (0.73)",
        "    a second text",
    ]


def test_samples_held_out_for_another_purpose_are_no_test_samples(tmp_path: Path) -> None:
    """The table's validation rows carry classes above the last one."""
    outputs, targets = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([2, 0, 1])
    looks.draw(labelled(["a", "b"]), outputs, targets, tmp_path)
    assert (tmp_path / "wrong.txt").read_text().startswith("0 of 2 held-out samples")


def test_many_classes_get_no_curves(tmp_path: Path) -> None:
    count = looks.NAMED + 1
    looks.draw(labelled([str(i) for i in range(count)]), torch.eye(count), torch.arange(count), tmp_path)
    assert names(tmp_path) == {"confusion.png", "wrong.txt"}


def test_language_gets_the_windows_with_the_highest_loss(text: Path, tmp_path: Path) -> None:
    task = tasks.build(runs.language(text, tmp_path / "run"))
    outputs, targets = outputs_of(task)
    outputs[5] = 0.0
    outputs[5].scatter_(1, (targets[5][:, None] + 1) % 256, 20.0)
    looks.draw(task, outputs, targets, tmp_path)
    head, first, shown = (tmp_path / "wrong.txt").read_text().splitlines()[:3]
    assert head.startswith(f"the {looks.SHOWN} held-out windows")
    assert first.startswith("5: ")
    assert shown.strip() == repr(bytes(targets[5].tolist()).decode())


def test_numbers_get_residuals_and_ranked_lists_the_places_of_the_right_one(tmp_path: Path) -> None:
    task = cast(Task, SimpleNamespace(preprocessing={"objective": "rating"}))
    truth = torch.randint(1, 6, (200,)).float()
    looks.draw(task, (truth + torch.randn(200) * 0.5)[:, None], truth, tmp_path / "rating")
    assert names(tmp_path / "rating") == {"residuals.png"} and is_picture(tmp_path / "rating" / "residuals.png")
    task = cast(Task, SimpleNamespace(preprocessing={"objective": "ranking"}))
    looks.draw(task, torch.randn(50, 20), torch.zeros(50, dtype=torch.long), tmp_path / "ranking")
    assert names(tmp_path / "ranking") == {"ranks.png"} and is_picture(tmp_path / "ranking" / "ranks.png")


def test_curves_are_those_of_scikit_learn_with_equal_scores_as_one_step() -> None:
    random = np.random.default_rng(0)
    positive = random.random(500) < 0.3
    scores = np.round(random.random(500) + positive * 0.4, 2)
    x, y = looks.roc(scores, positive)
    assert metrics.auc(x, y) == pytest.approx(metrics.roc_auc_score(positive, scores))
    recall, precision = looks.precision_recall(scores, positive)
    area = float(np.sum(np.diff(np.append(0.0, recall)) * precision))
    assert area == pytest.approx(metrics.average_precision_score(positive, scores))


def test_a_confusion_counts_rows_by_truth() -> None:
    truth, found = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 2, 2])
    assert np.array_equal(looks.confusion(truth, found, 3), metrics.confusion_matrix(truth, found))


def test_a_picture_that_fails_is_named_and_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no fonts")

    monkeypatch.setattr(looks, "_confusion", broken)
    with pytest.raises(RuntimeError, match=r"confusion\.png: ValueError: no fonts"):
        looks.draw(labelled(["a", "b"]), torch.eye(2), torch.arange(2), tmp_path)
    assert names(tmp_path) == {"roc.png", "precision-recall.png", "wrong.txt"}, "and nothing half-written"
