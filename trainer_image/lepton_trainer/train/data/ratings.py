"""Who rated or took what: MovieLens as the package recbole brings it, or a csv of one's own, with what is known of users and items.

Two ways of holding out, by what is to be learnt. A rating: a fraction of all rows. A ranking: each user's last item, to be found among
items that the user never took, always the same ones. Users and items that stand in held-out rows alone are unknown, as a new one will be.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from lepton_trainer.train.data import cache, table
from lepton_trainer.train.data.encoding import as_text, is_missing, number
from lepton_trainer.train.data.images import enforce, split_mask
from lepton_trainer.train.data.order import Int64s, keyed
from lepton_trainer.train.data.tabular import packaged
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.recommendation import RatingData

Array = NDArray[Any]
Columns = dict[str, list[str]]
UNKNOWN = 0
RANKED = 99
"""Items that a held-out one is ranked among (He et al., 2017, section 4.1)."""
TOP = 10
_BUCKETS = 10
"""Into how many equal parts a number that is known of users or items is cut."""
_VALUES = 1000
"""Known values of a column; the rarer ones count as missing."""
_NAMES = {
    "user": ("user", "user_id", "userid", "customer", "customer_id"),
    "item": ("item", "item_id", "itemid", "movie_id", "movieid", "product_id", "product"),
    "rating": ("rating", "score", "stars"),
    "time": ("timestamp", "time"),
}


@dataclass(frozen=True, slots=True)
class Known:
    """One thing known of users or items: a number cut into buckets at `edges`, or one of `values`, or several of them joined by |."""

    name: str
    edges: list[float]
    values: list[str]

    @classmethod
    def fit(cls, name: str, cells: Sequence[object]) -> Self | None:
        """None where it says nothing: the same for all, or another for each."""
        present = [as_text(cell) for cell in cells if not is_missing(cell)]
        numbers = np.array([number(cell) for cell in present])
        if len(present) and not np.isnan(numbers).any() and len(np.unique(numbers)) > _BUCKETS:
            edges = np.unique(np.quantile(numbers, np.linspace(0, 1, _BUCKETS + 1)[1:-1]))
            return cls(name, edges.tolist(), [])
        seen = Counter(part for cell in present for part in cell.split("|"))
        if len(seen) < 2 or len(seen) > max(20, 0.5 * len(present)):
            return None
        return cls(name, [], sorted(seen, key=lambda value: (-seen[value], value))[:_VALUES])

    def __len__(self) -> int:
        """How many places it has, without 0 for what is missing."""
        return len(self.edges) + 1 if self.edges else len(self.values)

    def places(self, cell: object) -> list[int]:
        """From 1; none where the cell is missing or unknown."""
        if is_missing(cell):
            return []
        if self.edges:
            found = number(cell)
            return [] if np.isnan(found) else [1 + int(np.searchsorted(self.edges, found, side="right"))]
        return [1 + self.values.index(part) for part in as_text(cell).split("|") if part in self.values]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Users and items by their place, from 1; 0 is an unknown one. The tables hold the places of what is known of each.

    `low` and `high` are the lowest and highest rating, `mean` their mean; all 0 where a ranking is learnt.
    """

    users: list[str]
    items: list[str]
    known_of_users: list[Known]
    known_of_items: list[Known]
    user_table: list[list[list[int]]]
    item_table: list[list[list[int]]]
    low: float
    high: float
    mean: float

    def encode(self, users: Sequence[object], items: Sequence[object]) -> tuple[Int64s, Int64s]:
        return _places(self.users, users), _places(self.items, items)

    @property
    def values(self) -> int:
        """Places over all that is known of users and items, with 0."""
        return 1 + sum(map(len, (*self.known_of_users, *self.known_of_items)))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        known = {name: [Known(**one) for one in document[name]] for name in ("known_of_users", "known_of_items")}
        return cls(**{**document, **known})


@dataclass(frozen=True, slots=True)
class RatingSet:
    """Pairs [n, 2] of a user's and an item's place with their ratings [n], none for a ranking.

    Held out are pairs and ratings too; for a ranking rows [m, 1 + c] of a user, the item that was taken, and others that were not.
    `popularity` is what ranking by the training rows' counts alone reaches: (hit rate, NDCG) at 10.
    """

    train: Array
    train_ratings: Array
    held: Array
    held_ratings: Array
    encoder: Encoder
    popularity: tuple[float, float] | None
    notes: list[str]
    rejected: dict[str, int]
    key: str


def load(config: RatingData, objective: Literal["rating", "ranking"], sides: bool) -> RatingSet:
    """The source that the configuration names, prepared or from the cache; `sides`: with what is known of users and items.

    Raises:
        UserError: the data is missing or unusable.
    """
    files = _files(config) if sides else _files(config)[:1]
    content = cache.digest_of_files(files, files[0].parent)
    settings = {"task": "ratings", "objective": objective, "sides": sides, **config.model_dump(exclude={"path"})}
    arrays, facts = cache.prepared(content, settings, lambda: _prepare(config, objective, files))
    return RatingSet(
        arrays["train"],
        arrays["train_ratings"],
        arrays["held"],
        arrays["held_ratings"],
        Encoder.from_json(facts["encoder"]),
        tuple(facts["popularity"]) if facts["popularity"] else None,
        facts["notes"],
        facts["rejected"],
        facts["key"],
    )


def _files(config: RatingData) -> list[Path]:
    """Of the ratings, then of the users and the items where they are there."""
    if config.source == "movielens":
        return [packaged("recbole", "dataset_example/ml-100k", config.path, f"ml-100k.{kind}") for kind in ("inter", "user", "item")]
    base = Path(config.path).expanduser()
    files = [base / "ratings.csv", base / "users.csv", base / "items.csv"] if base.is_dir() else [base]
    if not files[0].is_file():
        raise UserError(
            "there is no such file", where=str(files[0]), instead="Write in data.path where the csv is, or a directory with ratings.csv"
        )
    return [files[0], *(file for file in files[1:] if file.is_file())]


def _read(config: RatingData, file: Path) -> table.Table:
    found = table.read(file, config.encoding, config.delimiter, config.max_bad_fraction)
    if config.source != "movielens":
        return found
    columns = {}
    for name, cells in found.columns.items():  # recbole writes name:type, and words of a list with blanks between
        plain, _, kind = name.partition(":")
        columns[plain] = ["|".join(cell.split()) for cell in cells] if kind == "token_seq" and plain == "class" else cells
    return table.Table(columns, found.lines, found.rejected)


def _prepare(config: RatingData, objective: str, files: list[Path]) -> tuple[dict[str, Array], dict[str, Any]]:
    found = _read(config, files[0])
    where = str(files[0])
    names, told = _columns(config, found.columns, where, objective == "rating")
    users, items = ([as_text(cell) for cell in found.columns[names[kind]]] for kind in ("user", "item"))
    ratings = np.array([number(cell) for cell in found.columns[names["rating"]]]) if objective == "rating" else np.zeros(len(users))
    times = np.array([number(cell) for cell in found.columns[names["time"]]]) if "time" in names else np.zeros(len(users))
    rejected = Counter(found.rejected)
    named = np.array([bool(user and item) for user, item in zip(users, items, strict=True)])
    rejected["no user or no item"] = int((~named).sum())
    rejected["no rating"] = int((named & np.isnan(ratings)).sum())
    enforce(rejected, len(found) + sum(found.rejected.values()), where, config.max_bad_fraction)
    good = np.flatnonzero(named & ~np.isnan(ratings))
    last = {(users[row], items[row]): row for row in good[np.argsort(times[good], kind="stable")]}
    rows = np.array(sorted(last.values()), dtype=np.int64)
    if len(rows) < len(good):
        rejected["rated again later"] = len(good) - len(rows)
    held = split_mask(len(rows), config.test_fraction, config.split_seed) if objective == "rating" else _last(users, times, rows)
    if held.all() or not held.any():
        raise UserError(f"{len(rows)} rows leave an empty split", where=where, instead="Add rows, or write another data.testFraction")
    train, out = rows[~held], rows[held]
    encoder, notes = _encoder(config, files, [users[row] for row in train], [items[row] for row in train], ratings[train], objective)
    pairs = np.stack(encoder.encode([users[row] for row in rows], [items[row] for row in rows]), axis=1)
    arrays: dict[str, Array] = {
        "train": pairs[~held],
        "train_ratings": ratings[train].astype(np.float32),
        "held": pairs[held],
        "held_ratings": ratings[out].astype(np.float32),
    }
    popularity = None
    if objective == "ranking":
        arrays["held"] = candidates(pairs, pairs[held], len(encoder.items), config.split_seed)
        popularity = by_popularity(arrays["held"], arrays["train"], len(encoder.items))
        notes.append(
            f"held out: the last item of each of {len(out)} users, by {'time' if 'time' in names else 'place in the file'}, ranked among"
            f" {arrays['held'].shape[1] - 2} that the user never took; by popularity alone hit rate {popularity[0]:.4f}, NDCG"
            f" {popularity[1]:.4f} at {TOP}"
        )
    unknown = int((pairs[held] == UNKNOWN).any(axis=1).sum())
    if unknown:
        notes.append(f"{unknown} held-out rows have a user or item without training rows: they count, as unknown ones")
    notes = [f"{len(rows)} rows of {len(encoder.users)} users and {len(encoder.items)} items; {told}", *notes]
    facts = {"encoder": encoder.to_json(), "popularity": popularity, "notes": notes, "rejected": dict(+rejected)}
    return arrays, facts


def _columns(config: RatingData, columns: Columns, where: str, rated: bool) -> tuple[dict[str, str], str]:
    """Which column is what, as written or told from the names; and the same as a sentence."""
    left = list(columns)
    names: dict[str, str] = {}
    for kind, usual in _NAMES.items():
        written = getattr(config, kind)
        if written and written not in columns:
            raise UserError(f"has no column {written!r}", where=where, instead=f"Write one of {', '.join(columns)} in data.{kind}")
        found = written or next((name for name in left if name.lower() in usual), "")
        if not found and kind in ("user", "item") and left:
            found = left[0]
        if found:
            names[kind] = found
            left = [name for name in left if name != found]
    lacking = [kind for kind in ("user", "item", *(["rating"] if rated else [])) if kind not in names]
    if lacking:
        raise UserError(
            f"has no column of the {lacking[0]}: {', '.join(columns)}",
            where=where,
            instead=f"Write its name in data.{lacking[0]}"
            + (", or objective: ranking, which needs none" if lacking[0] == "rating" else ""),
        )
    return names, ", ".join(f"{kind} in {name!r}" for kind, name in names.items())


def _last(users: Sequence[str], times: Array, rows: Int64s) -> NDArray[np.bool_]:
    """True for each user's last row, where the user has another one."""
    latest: dict[str, int] = {}
    many = Counter(users[row] for row in rows)
    for place in np.argsort(times[rows], kind="stable"):
        if many[users[rows[place]]] > 1:
            latest[users[rows[place]]] = int(place)
    held = np.zeros(len(rows), dtype=np.bool_)
    held[list(latest.values())] = True
    return held


def _encoder(
    config: RatingData, files: list[Path], users: list[str], items: list[str], ratings: Array, objective: str
) -> tuple[Encoder, list[str]]:
    """From the training rows alone, and what the other files know of their users and items."""
    ids = sorted(set(users), key=_natural), sorted(set(items), key=_natural)
    known: list[list[Known]] = []
    tables: list[list[list[list[int]]]] = []
    notes = []
    first = 0
    for kind, own, file in (("user", ids[0], files[1:2]), ("item", ids[1], files[2:3])):
        if len(files) == 2 and files[1].stem == "items":  # a directory without users.csv
            file = files[1:2] if kind == "item" else []
        columns, cells = _sides(config, file[0], kind, own) if file else ([], {})
        known.append(columns)
        places = [
            [[first + sum(map(len, columns[:at])) + place for place in one.places(cells[one.name][row])] for at, one in enumerate(columns)]
            for row in range(len(own))
        ]
        first += sum(map(len, columns))
        longest = max((len(cell) for row in places for cell in row), default=1)
        unknown: list[list[int]] = [[] for _ in columns]
        tables.append([[cell + [0] * (longest - len(cell)) for cell in row] for row in (unknown, *places)])
        if columns:
            notes.append(f"known of each {kind}: {', '.join(one.name for one in columns)}")
    rated = objective == "rating"
    span = (float(ratings.min()), float(ratings.max()), float(ratings.mean())) if rated else (0.0, 0.0, 0.0)
    return Encoder(ids[0], ids[1], known[0], known[1], tables[0], tables[1], *span), notes


def _sides(config: RatingData, file: Path, kind: str, own: list[str]) -> tuple[list[Known], dict[str, list[str]]]:
    """What the file knows of `own`: its useful columns, and all cells in the order of `own`."""
    found = _read(config, file)
    written = getattr(config, kind)
    identifier = next(
        (name for name in found.columns if name == written or name.lower() in (*_NAMES[kind], "id")), next(iter(found.columns))
    )
    row = {as_text(cell): place for place, cell in enumerate(found.columns[identifier])}
    if not any(one in row for one in own):
        raise UserError(
            f"column {identifier!r} holds none of the {kind}s of the ratings",
            where=str(file),
            instead=f"Its first column must name the {kind}",
        )
    cells = {name: [column[row[one]] if one in row else "" for one in own] for name, column in found.columns.items() if name != identifier}
    fitted = [Known.fit(name, column) for name, column in cells.items()]
    return [one for one in fitted if one is not None], cells


def candidates(taken: Array, held: Array, items: int, seed: int) -> Array:
    """Rows [m, 1 + c]: the user, the item held out, and items that the user took nowhere in `taken` [n, 2], drawn by hash of the user.

    Raises:
        UserError: a user took nearly all items, so that too few are left to rank among.
    """
    by_user: dict[int, list[int]] = {}
    for user, item in taken.tolist():
        by_user.setdefault(user, []).append(item)
    most = max(len({*by_user[user]} - {UNKNOWN}) for user in held[:, 0].tolist())
    count = min(RANKED, items - most)
    if count < TOP:
        raise UserError(
            f"of {items} items a user took {most}: there is nothing to rank", where="objective", instead="Write rating, or add items"
        )
    rows = np.empty((len(held), 2 + count), dtype=np.int64)
    everything = np.arange(1, items + 1)
    for row, (user, item) in zip(rows, held.tolist(), strict=True):
        free = np.setdiff1d(everything, by_user[user], assume_unique=False)
        row[:2] = user, item
        row[2:] = free[np.argpartition(keyed(seed, user, free), count - 1)[:count]]
    return rows


def ranks(scores: Array) -> Array:
    """Of the first of each row's scores [m, c]: how many others are as high or higher."""
    found: Array = (scores[:, 1:] >= scores[:, :1]).sum(axis=1)
    return found


def by_popularity(held: Array, train: Array, items: int) -> tuple[float, float]:
    """Hit rate and NDCG at 10 of ranking by how often an item was taken in training; an unknown item never was."""
    counts = np.bincount(train[:, 1], minlength=items + 1)
    counts[UNKNOWN] = 0
    place = ranks(counts[held[:, 1:]])
    return float((place < TOP).mean()), float(np.where(place < TOP, 1.0 / np.log2(place + 2.0), 0.0).mean())


def _places(known: Sequence[str], wanted: Sequence[object]) -> Int64s:
    place = {name: index for index, name in enumerate(known, 1)}
    return np.array([place.get(as_text(one), UNKNOWN) for one in wanted], dtype=np.int64)


def _natural(name: str) -> tuple[int, str]:
    """Numbers in their own order."""
    return (len(name) if name.isdecimal() else 0, name)
