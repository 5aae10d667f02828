"""The run directory of a local job: compare-and-swap, one runner, files that are never seen half written."""

import json
import os
import threading
from pathlib import Path

import pytest

from lepton_operator.local.columns import HEADER, row, table
from lepton_operator.local.store import RunDirectory, replace_file
from lepton_operator.substrate import Conflict, Gone


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.setenv("LEPTON_HOME", str(tmp_path))
    directory = RunDirectory("default", "job")
    directory.make()
    directory.create(
        {"metadata": {"name": "job", "resourceVersion": "1", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {}, "status": {}}
    )
    return directory


def test_a_write_that_knows_an_older_version_is_refused(run: RunDirectory) -> None:
    changed = run.update(lambda body: body["spec"].update(a=1), "1")
    assert changed["metadata"]["resourceVersion"] == "2"
    with pytest.raises(Conflict):
        run.update(lambda body: body["spec"].update(a=2), "1")
    body = run.read()
    assert body is not None and body["spec"] == {"a": 1}


def test_what_is_gone_cannot_be_changed(run: RunDirectory) -> None:
    run.job_file.unlink()
    with pytest.raises(Gone):
        run.update(lambda body: None)
    assert run.read() is None


def test_a_job_has_one_runner(run: RunDirectory) -> None:
    assert not run.running
    first = run.claim()
    assert first is not None and run.claim() is None and run.running
    os.close(first)
    assert not run.running


def test_writers_at_once_lose_nothing_and_readers_see_whole_files(run: RunDirectory) -> None:
    def count(name: str) -> None:
        for _ in range(50):
            run.update(lambda body: body["spec"].update({name: body["spec"].get(name, 0) + 1}))

    writers = [threading.Thread(target=count, args=(name,)) for name in "abc"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        json.loads(run.job_file.read_text())
    body = run.read()
    assert body is not None
    assert body["spec"] == {"a": 50, "b": 50, "c": 50} and body["metadata"]["resourceVersion"] == "151"


def test_a_file_that_cannot_be_replaced_stays_and_leaves_no_rest(tmp_path: Path) -> None:
    (tmp_path / "a directory").mkdir()
    with pytest.raises(OSError, match="a directory"):
        replace_file(tmp_path / "a directory", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["a directory"]


def test_a_job_without_status_is_a_line_of_empty_cells(run: RunDirectory) -> None:
    body = run.read()
    assert body is not None
    cells = row(body)
    assert len(cells) == len(HEADER) and cells[:3] == ("job", "", "")
    assert table([cells]).splitlines()[0].split() == list(HEADER)
