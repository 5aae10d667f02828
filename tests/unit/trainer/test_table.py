"""A csv as it comes out of spreadsheets and databases: each row is there once and whole, and what is no row is named by its line."""

from __future__ import annotations

import csv
import gzip
import hashlib
import random
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from lepton_trainer.train.data.order import Order, share
from lepton_trainer.train.data.table import Table, read
from lepton_trainer.train.errors import UserError

NASTY = 'a"b\r\nc,d'


def written(path: Path, rows: list[list[str]], end: str = "\n", mark: bytes = b"") -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator=end).writerows(rows)
    path.write_bytes(mark + path.read_bytes())
    return path


def table(tmp_path: Path, text: str | bytes, **how: object) -> Table:
    file = tmp_path / "table.csv"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return read(file, **how)  # type: ignore[arg-type]


def hashes_of_a_rank(path: str, rank: int, world: int) -> dict[int, str]:
    """Runs in a worker: the samples that one of `world` processes uses in an epoch, by their row."""
    found = read(Path(path))
    _, indices = Order(7, len(found)).at(*share(0, len(found), rank, world))
    columns = list(found.columns.values())
    return {int(row): hashlib.sha256(repr([column[row] for column in columns]).encode()).hexdigest() for row in indices}


def test_a_spreadsheets_csv_gives_three_workers_the_rows_labels_and_hashes_of_its_clean_copy(tmp_path: Path) -> None:
    """Case B34: a byte order mark before the label, CRLF, quoted line breaks and doubled quotes at every place of a chunk, U+2028."""
    chance = random.Random(5)
    rows = [["label", "text", "note"]]
    for index in range(10_000):
        text = "x" * chance.randrange(40) + chance.choice(
            [NASTY, "\u2028", f"{NASTY}\u2028{NASTY}", "plain", '"', "\r\n", "\n", "\x85\x0c"]
        )
        rows.append([chance.choice(["spam", "ham"]), text, f"{index} naïve"])
    dirty = written(tmp_path / "dirty.csv", rows, "\r\n", b"\xef\xbb\xbf")
    clean = written(tmp_path / "clean.csv", rows)
    with clean.open(newline="", encoding="utf-8") as stream:
        header, *expected = list(csv.reader(stream))

    found = read(dirty)
    assert list(found.columns) == header == ["label", "text", "note"]
    assert len(found) == 10_000 and not found.rejected
    assert found.columns["label"] == [row[0] for row in expected]
    hashes: dict[int, str] = {}
    with ProcessPoolExecutor(3) as pool:
        for part in pool.map(hashes_of_a_rank, [str(dirty)] * 3, range(3), [3] * 3):
            assert not hashes.keys() & part.keys()
            hashes |= part
    assert hashes == {index: hashlib.sha256(repr(row).encode()).hexdigest() for index, row in enumerate(expected)}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_may_end_in_any_way_and_the_last_one_not_at_all(tmp_path: Path, end: str) -> None:
    found = table(tmp_path, end.join(["a,b", "1,x", "", "2,y"]))
    assert found.columns == {"a": ["1", "2"], "b": ["x", "y"]} and found.lines == [2, 4]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_told_from_the_first_rows(tmp_path: Path, delimiter: str) -> None:
    other = ";" if delimiter == "," else ","
    text = f'a{delimiter}b\n1{delimiter}"x{other}y{other}z"\n2{delimiter}y{other}x\n'
    assert table(tmp_path, text).columns == {"a": ["1", "2"], "b": [f"x{other}y{other}z", f"y{other}x"]}
    assert table(tmp_path, text, delimiter=delimiter).columns["a"] == ["1", "2"]


def test_a_gzipped_table_is_read(tmp_path: Path) -> None:
    assert table(tmp_path, gzip.compress(b"a,b\n1,2\n")).columns == {"a": ["1"], "b": ["2"]}


def test_a_ragged_row_is_counted_with_its_line_and_beyond_the_limit_ends_the_run(tmp_path: Path) -> None:
    text = 'a,b\n1,"x\ny"\n1,2,3\n4\n5,6,7\n' + "8,9\n" * 96
    with pytest.raises(UserError, match=r"table.csv: 3 of 100 rows are bad \(2 x 3 values instead of 2 \(first in line 4\), 1 x 1 val"):
        table(tmp_path, text)
    found = table(tmp_path, text, max_bad_fraction=0.03)
    assert len(found) == 97 and found.rejected == {
        "3 values instead of 2 (first in line 4)": 2,
        "1 values instead of 2 (first in line 5)": 1,
    }


def test_a_quote_that_is_never_closed_costs_all_the_lines_that_it_swallows(tmp_path: Path) -> None:
    text = "a,b\n" + "1,2\n" * 50 + '3,"open\n' + "4,5\n" * 49
    with pytest.raises(UserError, match=r"50 of 100 rows are bad \(50 x a quote that is never closed \(first in line 52\)\)"):
        table(tmp_path, text, max_bad_fraction=0.1)
    found = table(tmp_path, 'a,b\n1,"x"y\n2,z\n3,5" pipe\n', max_bad_fraction=0.5)
    assert found.columns["a"] == ["2", "3"] and found.rejected == {"a quote in the middle of a value (first in line 2)": 1}


@pytest.mark.parametrize(
    ("content", "how", "message"),
    [
        ("a,b\n1,é\n2,ü".encode("cp1252"), {}, r"byte 6 \(0xe9, in line 2\) is not utf-8. Write data.encoding: .*cp1252"),
        ("a,b\n1,é".encode("utf-16"), {}, r"begins with the mark of utf-16. Write data.encoding: utf-16"),
        ("a,b\n1,2".encode("utf-16-le"), {}, r"line 1 holds a NUL character. .*data.encoding: utf-16"),
        (b"a,b\n1,2", {"encoding": "utf-9"}, "data.encoding: 'utf-9' is no encoding"),
        (b"", {}, "is empty. The first line must hold the columns' names"),
        (b"a,b\n", {}, "has no rows below"),
        (b"a,a\n1,2", {}, "two columns named 'a'"),
        (b"5.1,3\n4.9,2\n", {}, r"begins with numbers \(5.1, 3\)"),
        (b'"a,b\n1,2', {}, "line 1: a quote that is never closed"),
    ],
)
def test_what_is_no_table_is_named_with_what_to_write(tmp_path: Path, content: bytes, how: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(tmp_path, content, **how)


def test_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    for encoding in ("cp1252", "utf-16", "utf-8"):
        assert table(tmp_path, "naïve,b\nü,2\n".encode(encoding), encoding=encoding).columns == {"naïve": ["ü"], "b": ["2"]}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere.csv: there is no such file"):
        read(tmp_path / "nowhere.csv")


def test_a_value_may_be_long_and_columns_without_a_name_are_called_by_their_place(tmp_path: Path) -> None:
    long = "x" * 1_000_000
    assert table(tmp_path, f",text\n0,{long}\n").columns == {"column 1": ["0"], "text": [long]}
