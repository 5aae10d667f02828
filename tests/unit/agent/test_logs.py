"""The log reader: prefixes, progress bars, long lines, bytes that are no text. (Cases B24 and B25.)"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from lepton_trainer.agent import logs
from lepton_trainer.agent.logs import PIECE, Output, RankLog, clean, tail


class Rank:
    """The writing end of a rank's pipe, and what came out of the agent for it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT)
        loop = asyncio.get_running_loop()
        reading, self.pipe = os.pipe()
        self.lines: list[str] = []
        self.log = RankLog(loop, reading, 3, Output(loop, self._file), self.lines.append)

    async def write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self.pipe, data[:60000]) :]
            await asyncio.sleep(0.002)

    @property
    def output(self) -> str:
        return self._path.read_text("utf-8")

    def close(self) -> None:
        os.close(self.pipe)
        self.log.close()
        os.close(self._file)


@asynccontextmanager
async def a_rank(path: Path) -> AsyncIterator[Rank]:
    rank = Rank(path / "output")
    try:
        yield rank
    finally:
        rank.close()


async def test_every_line_comes_once_with_its_rank(tmp_path: Path) -> None:
    async with a_rank(tmp_path) as rank:
        await rank.write(b"one\n\ntwo\r\nthr")
        await rank.write(b"ee\nlast")
        rank.log.drain()
        assert rank.output == "[rank 3] one\n[rank 3] \n[rank 3] two\n[rank 3] three\n[rank 3] last\n"
        assert rank.lines == ["one", "", "two", "three", "last"]
        assert rank.log.text == "one\n\ntwo\nthree\nlast\n"


async def test_a_progress_bar_of_carriage_returns_moves_and_only_its_newest_state_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "SILENT_SECONDS", 0.05)
    async with a_rank(tmp_path) as rank:
        for percent in range(100):
            await rank.write(f"\r{percent}%".encode())
        shown = rank.output.splitlines()
        assert 1 < len(shown) < 50
        await rank.write(b"\r100%\ndone\n")
        assert rank.output.endswith("[rank 3] 100%\n[rank 3] done\n")


async def test_a_line_of_megabytes_passes_in_pieces_and_costs_no_memory(tmp_path: Path) -> None:
    async with a_rank(tmp_path) as rank:
        await rank.write(b"x" * (4 << 20) + b"the end\n")
        rank.log.drain()
        lines = rank.output.splitlines()
        assert max(map(len, lines)) <= PIECE + len("[rank 3] ")
        assert sum(len(line) - len("[rank 3] ") for line in lines) == (4 << 20) + len("the end")
        assert rank.log.text.rstrip().endswith("the end") and len(rank.log.text) < 64 << 10


async def test_bytes_that_are_no_text_become_replacement_characters(tmp_path: Path) -> None:
    async with a_rank(tmp_path) as rank:
        await rank.write(b"caf\xe9 \x00 \x1b[31mred\x1b[0m \xe6\x97")
        await rank.write(b"\xa5\n")
        assert rank.lines == ["caf\ufffd \x00 \x1b[31mred\x1b[0m 日"]
        assert rank.log.text == "caf\ufffd  red 日\n"


async def test_a_reader_that_does_not_read_holds_the_rank_back_and_loses_nothing(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    rank_end, rank_pipe = os.pipe()
    os.set_blocking(rank_pipe, False)
    output = Output(loop, writing)
    log = RankLog(loop, rank_end, 0, output)
    sent = 0
    for _ in range(400):
        try:
            sent += os.write(rank_pipe, b"y" * 99 + b"\n")
        except BlockingIOError:
            break
        for _ in range(40):
            try:
                sent += os.write(rank_pipe, b"y" * 9999 + b"\n")
            except BlockingIOError:
                break
        await asyncio.sleep(0)
    assert output.full and sent < 4 << 20
    os.set_blocking(reading, False)
    got = 0
    while got < sent:
        await asyncio.sleep(0.001)
        try:
            got += os.read(reading, 1 << 20).count(b"y")
        except BlockingIOError:
            continue
        if got >= sent * 0.98:
            break
    os.close(rank_pipe)
    log.close()
    loop.remove_writer(writing)
    for descriptor in (reading, writing):
        os.close(descriptor)


def test_a_tail_is_cut_between_characters_and_within_its_bytes() -> None:
    assert tail("日" * 10, 8) == "日日"
    assert tail("first\n" + "s" * 90, 92) == "s" * 90
    assert tail("short", 2048) == "short"


def test_cleaning_leaves_text_and_line_ends() -> None:
    assert clean("\x1b]0;title\x07a\tb\x1b[2K\r\nc\x08\x7f") == "a\tb\nc"
