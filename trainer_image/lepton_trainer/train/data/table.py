"""A file of comma-separated values as columns of text: read whole, by RFC 4180 and what spreadsheets make of it.

A byte order mark, line ends of any kind, quoted line breaks and doubled quotes are part of the format. What is not a row of the table is
counted and named by its line; bytes of another encoding end the run with the place of the first one. Nothing is interpreted here.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lepton_trainer.train.data.images import enforce
from lepton_trainer.train.errors import UserError

DELIMITERS = ",;\t|"
_LOOKED_AT = 20
"""Rows that are looked at to tell the delimiter."""
_WIDE_MARKS = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}


@dataclass(frozen=True, slots=True)
class Table:
    """Columns by name, all of the same length, in the file's order; `lines` is where each row begins in the file, from 1.

    `rejected` counts the rows left out, by a reason that names the first one's line.
    """

    columns: dict[str, list[str]]
    lines: list[int]
    rejected: dict[str, int]

    def __len__(self) -> int:
        return len(self.lines)


def read(path: Path, encoding: str = "utf-8", delimiter: str = "", max_bad_fraction: float = 0.0) -> Table:
    """The table in `path`, plain or .gz; the first row holds the columns' names.

    Args:
        encoding: any of Python's; a byte order mark of UTF-8 is dropped.
        delimiter: one character; empty means that of , ; tab | which suits the first rows best.
        max_bad_fraction: more bad rows than this end the run.
    Raises:
        UserError: the file is missing, is no such table, is of another encoding, or has too many bad rows.
    """
    text = _text(path, encoding)
    delimiter = delimiter or guess(text)
    rows = _rows(text, delimiter)
    line, header = next(((line, row) for line, row in rows if row), (0, None))
    if not isinstance(header, list):
        what = "is empty" if header is None else f"line {line}: {header}"
        raise UserError(what, where=str(path), instead="The first line must hold the columns' names")
    names = _names(header, path)
    found: list[list[str]] = []
    lines: list[int] = []
    bad, first, total = Counter[str](), dict[str, int](), 0
    for line, row in rows:
        if isinstance(row, list) and len(row) == len(names):
            total += 1
            found.append(row)
            lines.append(line)
        elif row:
            reason, lost = (f"{len(row)} values instead of {len(names)}", 1) if isinstance(row, list) else (row.reason, row.lines)
            total += lost
            bad[reason] += lost
            first.setdefault(reason, line)
    told = Counter({f"{reason} (first in line {first[reason]})": count for reason, count in bad.items()})
    enforce(told, total, str(path), max_bad_fraction)
    if not found:
        raise UserError("has no rows below the columns' names", where=str(path), instead="Write one row per line")
    return Table(dict(zip(names, map(list, zip(*found, strict=True)), strict=True)), lines, dict(told))


def guess(text: str) -> str:
    """The delimiter that cuts the first rows into the most columns, the same number in each; a comma where none does."""
    best, most = ",", 1
    for candidate in DELIMITERS:
        widths = set()
        for count, (_, row) in enumerate(_rows(text, candidate)):
            if count == _LOOKED_AT:
                break
            if isinstance(row, list) and row:
                widths.add(len(row))
        if len(widths) == 1 and (width := widths.pop()) > most:
            best, most = candidate, width
    if most == 1:  # no candidate fits all rows: the one that the first row has most of
        head = text[: 1 << 16].splitlines()[0] if text else ""
        best = max(DELIMITERS, key=head.count)
    return best


@dataclass(frozen=True, slots=True)
class _Broken:
    """A row that is none, and how many lines of the file went with it."""

    reason: str
    lines: int

    def __str__(self) -> str:
        return self.reason


def _rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str] | _Broken]]:
    """Each row with the line that it begins in; an empty line is an empty row."""
    csv.field_size_limit(sys.maxsize)
    # A StringIO that translates nothing ends lines at \n, \r and \r\n alone: U+2028 and form feeds are part of a value.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            yield line, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            end = "unexpected end" in str(error)
            yield line, _Broken("a quote that is never closed" if end else "a quote in the middle of a value", reader.line_num - line + 1)


def _names(header: list[str], path: Path) -> list[str]:
    """The columns' names, stripped; what has none is called by its place.

    Raises:
        UserError: two are the same, or the row holds numbers.
    """
    names = [name.strip() or f"column {place}" for place, name in enumerate(header, 1)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"has two columns named {twice[0]!r}", where=str(path), instead="Give each its own name in the first line")
    if all(map(_is_number, names)) and names != [str(place) for place in range(len(names))]:
        raise UserError(
            f"begins with numbers ({', '.join(names[:3])}) instead of the columns' names",
            where=str(path),
            instead="Write a first line that names them",
        )
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _text(path: Path, encoding: str) -> str:
    try:
        raw = path.read_bytes()
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path), instead="Write in data.path where the table is") from None
    except (OSError, EOFError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise UserError(
            f"{encoding!r} is no encoding", where="data.encoding", instead="Write utf-8, cp1252, latin-1, utf-16 or another"
        ) from None
    if name == "utf-8":
        wide = next((other for mark, other in reversed(_WIDE_MARKS.items()) if raw.startswith(mark)), None)
        if wide is not None:
            raise UserError(f"begins with the mark of {wide}", where=str(path), instead=f"Write data.encoding: {wide}")
        name = "utf-8-sig"
    try:
        text = raw.decode(name)
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        place = f"byte {error.start} (0x{error.object[error.start]:02x}, in line {before.count(bytes([10])) + 1}) is not {encoding}"
        likely = "cp1252 for Western Windows files, latin-1, utf-16" if name.startswith("utf-8") else "utf-8, cp1252"
        raise UserError(place, where=str(path), instead=f"Write data.encoding: the file's own, e.g. {likely}") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"line {line} holds a NUL character", where=str(path), instead="If this is UTF-16, write data.encoding: utf-16")
    return text
