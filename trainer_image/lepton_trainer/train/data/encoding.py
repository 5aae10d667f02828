"""How the cells of a row become numbers, learnt from the training rows alone; kept as JSON, so that a server encodes as the training did.

A number is standardised; a missing one becomes the mean, marked where the training rows had missing ones too. A category becomes its
place in the list of known ones: 0 stands for any other, 1 for a missing one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

MISSING = frozenset(("", "?", "-", "na", "n/a", "nan", "null"))
"""What stands for a value that is not there, in lower case."""
BINS = 32
"""Of the piecewise-linear encoding of a number."""
VALUES = 254
"""Known values of a category; the places up to 256 are exact in bf16, too. The rarer ones count as others."""
OTHER, ABSENT = 0, 1

Kind = Literal["number", "category"]
Floats = NDArray[np.float32]


def as_text(cell: object) -> str:
    """A cell as a csv would hold it: of a request it may be a number, a truth value or nothing."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def is_missing(cell: object) -> bool:
    return as_text(cell).lower() in MISSING


def number(cell: object) -> float:
    """The number that a cell holds, NaN where it holds none; an infinite one is none."""
    try:
        found = float(as_text(cell))
    except ValueError:
        return math.nan
    return found if math.isfinite(found) else math.nan


@dataclass(frozen=True, slots=True)
class Number:
    """A column of numbers: `edges` are the bins' of its standardised values; `marked` says that a missing value has a mark of its own."""

    name: str
    mean: float
    std: float
    edges: list[float]
    marked: bool

    @classmethod
    def fit(cls, name: str, cells: Sequence[object]) -> Self:
        values = np.array([number(cell) for cell in cells])
        known = values[np.isfinite(values)]
        if not len(known):
            return cls(name, 0.0, 1.0, [0.0, 1.0], True)
        mean, std = float(known.mean()), float(known.std()) or 1.0
        distinct = np.unique(known)
        points = distinct if len(distinct) <= BINS + 1 else np.quantile(known, np.linspace(0, 1, BINS + 1))
        edges = np.unique(((points - mean) / std).astype(np.float32))
        return cls(name, mean, std, edges.tolist() if len(edges) > 1 else [0.0, 1.0], len(known) < len(values))


@dataclass(frozen=True, slots=True)
class Category:
    """A column of categories: the known values, the most frequent first."""

    name: str
    values: list[str]

    @classmethod
    def fit(cls, name: str, cells: Sequence[object]) -> Self:
        seen = Counter(as_text(cell) for cell in cells if not is_missing(cell))
        return cls(name, sorted(seen, key=lambda value: (-seen[value], value))[:VALUES])

    def places(self, cells: Sequence[object]) -> list[int]:
        known = {value: place for place, value in enumerate(self.values, 2)}
        return [ABSENT if is_missing(cell) else known.get(as_text(cell), OTHER) for cell in cells]


@dataclass(frozen=True, slots=True)
class Encoder:
    """All columns of a row that are learnt from; rows become float32 [n, width]: numbers, marks, categories."""

    numbers: list[Number]
    categories: list[Category]

    @classmethod
    def fit(cls, columns: Mapping[str, Sequence[object]], kinds: Mapping[str, Kind]) -> Self:
        """Learnt from the training rows' `columns`; those without a kind are left out."""
        return cls(
            [Number.fit(name, columns[name]) for name, kind in kinds.items() if kind == "number"],
            [Category.fit(name, columns[name]) for name, kind in kinds.items() if kind == "category"],
        )

    @property
    def marks(self) -> int:
        return sum(column.marked for column in self.numbers)

    @property
    def names(self) -> list[str]:
        return [*(column.name for column in self.numbers), *(column.name for column in self.categories)]

    def encode(self, columns: Mapping[str, Sequence[object]], count: int) -> Floats:
        """Of `count` rows, given by column; a column that is not there is missing in each row."""
        nothing: list[object] = [None] * count
        standard, marks = [], []
        for column in self.numbers:
            values = np.array([number(cell) for cell in columns.get(column.name, nothing)], dtype=np.float64)
            missing = np.isnan(values)
            standard.append(np.where(missing, 0.0, (values - column.mean) / column.std))
            if column.marked:
                marks.append(missing)
        places = [column.places(columns.get(column.name, nothing)) for column in self.categories]
        parts: list[Any] = [*standard, *marks, *places]
        return np.array(parts, dtype=np.float32).reshape(len(parts), count).T.copy()

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        return cls([Number(**column) for column in document["numbers"]], [Category(**column) for column in document["categories"]])
