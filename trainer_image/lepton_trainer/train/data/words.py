"""From a text to the numbers that a model of text classes reads: fitted to the training split, kept with the model, used when it serves.

Words are runs of letters, digits and underscores in lower case; in scripts without spaces each character of the CJK blocks is one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PADDING, UNKNOWN = 0, 1
UNIT = 1 << 20
"""What a weight of 1 is in `Encoder.encode`: whole numbers, so that numbers and weights are one tensor."""
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W{_CJK}]+")


def words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def grams(found: Sequence[str], longest: int) -> Iterator[str]:
    """All runs of one to `longest` words, joined by spaces."""
    for size in range(1, longest + 1):
        for first in range(len(found) - size + 1):
            yield " ".join(found[first : first + size])


@dataclass(frozen=True, slots=True)
class Encoder:
    """`known[i]` has the number i + 2; 0 fills up, 1 is any other word. `rarity` [known + 2] is each n-gram's inverse document frequency,
    log((1 + texts) / (1 + texts that hold it)) + 1; empty where words are read in order."""

    ordered: bool
    longest: int
    max_length: int
    known: list[str]
    rarity: NDArray[np.float64]
    labels: list[str]
    numbers: dict[str, int]

    @classmethod
    def fit(
        cls, texts: Iterable[str], labels: list[str], *, ordered: bool, longest: int, max_length: int, most: int, least: int
    ) -> Encoder:
        """Know the `most` words or n-grams that the most of `texts` hold, at least `least` of them each."""
        longest = 1 if ordered else longest
        holding: Counter[str] = Counter()
        count = 0
        for text in texts:
            holding.update(set(grams(words(text)[:max_length], longest)))
            count += 1
        chosen = sorted(((n, gram) for gram, n in holding.items() if n >= least), key=lambda item: (-item[0], item[1]))[:most]
        rarity = [] if ordered else [0.0, 0.0, *(round(math.log((1 + count) / (1 + n)) + 1, 6) for n, _ in chosen)]
        return cls._of(ordered, longest, max_length, [gram for _, gram in chosen], rarity, labels)

    @classmethod
    def _of(cls, ordered: bool, longest: int, max_length: int, known: list[str], rarity: list[float], labels: list[str]) -> Encoder:
        return cls(ordered, longest, max_length, known, np.array(rarity), labels, {gram: number for number, gram in enumerate(known, 2)})

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Encoder:
        return cls._of(kept["ordered"], kept["longest"], kept["maxLength"], kept["known"], kept["rarity"], kept["labels"])

    def to_json(self) -> dict[str, Any]:
        return {
            "ordered": self.ordered,
            "longest": self.longest,
            "maxLength": self.max_length,
            "known": self.known,
            "rarity": self.rarity.tolist(),
            "labels": self.labels,
        }

    @property
    def size(self) -> int:
        """Of the vocabulary with its two extra numbers."""
        return len(self.known) + 2

    def encode(self, text: str) -> NDArray[np.int32]:
        """Words in order [n], or n-grams and their weights in units of 1 / UNIT [2, n]; n is at least 1.

        An n-gram that occurs c times weighs (1 + log c) * rarity, and each text's weights are scaled to length 1: tf-idf (Salton and
        Buckley, 1988).
        """
        found = words(text)[: self.max_length]
        if self.ordered:
            return np.array([self.numbers.get(word, UNKNOWN) for word in found] or [UNKNOWN], dtype=np.int32)
        counts = Counter(number for gram in grams(found, self.longest) if (number := self.numbers.get(gram)))
        if not counts:
            return np.array([[UNKNOWN], [0]], dtype=np.int32)
        numbers = np.array(list(counts))
        weights = (1.0 + np.log(list(counts.values()))) * self.rarity[numbers]
        return np.stack([numbers, np.round(weights * (UNIT / np.linalg.norm(weights)))]).astype(np.int32)

    def batch(self, rows: Sequence[NDArray[np.int32]]) -> NDArray[np.int64]:
        """Rows of `encode`, filled up to the longest: [n, longest], or [n, 2, longest] for n-grams."""
        longest = max((row.shape[-1] for row in rows), default=1)
        shape = (len(rows), longest) if self.ordered else (len(rows), 2, longest)
        result = np.full(shape, PADDING, dtype=np.int64)
        for filled, row in zip(result, rows, strict=True):
            filled[..., : row.shape[-1]] = row
        return result
