"""The output of the ranks: read without ever blocking, prefixed with the rank, passed on, its end kept for the post-mortem.

Progress bars that only return the carriage come out every few seconds as a line of their own; lines of any length pass in bounded pieces;
bytes that are no UTF-8 become replacement characters.
"""

import asyncio
import codecs
import os
import re
import stat
from collections import deque
from typing import Callable, Deque, List, Optional

CHUNK = 65536
PIECE = 16384
"""Characters: a line longer than this passes in pieces, each prefixed."""
SILENT_SECONDS = 2.0
"""Text without a line end (a progress bar, a prompt) is passed on after so long."""
TAIL_CHARACTERS = 16384
OUTPUT_LIMIT = 1 << 20
"""Bytes that wait for a slow reader of our own output; beyond it the ranks' pipes are not read, and fill, as without us."""

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def clean(text: str) -> str:
    """Text that a status field and a terminal can carry: no escape codes, no control characters but tab and newline."""
    return _CONTROL.sub("", _ANSI.sub("", text))


def tail(text: str, limit: int) -> str:
    """The end of `text`, at most `limit` bytes of UTF-8, cut between characters and if possible at the start of a line."""
    data = text.encode("utf-8", "replace")
    if len(data) <= limit:
        return text
    end = data[-limit:].decode("utf-8", "ignore")
    line = end.find("\n")
    return end[line + 1 :] if 0 <= line < limit // 4 else end


class Output:
    """Our own stdout, written without blocking; `full` tells readers to pause."""

    def __init__(self, loop: asyncio.AbstractEventLoop, descriptor: int = 1) -> None:
        self._loop = loop
        self._descriptor = descriptor
        self._waiting = bytearray()
        self._writing = False
        self._paused: List[Callable[[], None]] = []
        kind = os.fstat(descriptor).st_mode
        self._pollable = stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)
        if self._pollable:
            self._descriptor = _own_description(descriptor)

    @property
    def full(self) -> bool:
        return len(self._waiting) > OUTPUT_LIMIT

    def when_free(self, resume: Callable[[], None]) -> None:
        self._paused.append(resume)

    def write(self, text: str) -> None:
        self._waiting += text.encode("utf-8", "replace")
        if not self._writing:
            self._flush()

    def _flush(self) -> None:
        try:
            while self._waiting:
                written = os.write(self._descriptor, self._waiting[:CHUNK])
                del self._waiting[:written]
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._descriptor, self._flush)
        except OSError:  # whoever read our output is gone: training goes on without
            self._waiting.clear()
        if self._writing and not self._waiting:
            self._loop.remove_writer(self._descriptor)
            self._writing = False
        if self._paused and not self.full:
            paused, self._paused = self._paused, []
            for resume in paused:
                resume()

    def drain(self) -> None:
        """At the very end: what is left, without waiting for a reader that does not read."""
        self._flush()


def _own_description(descriptor: int) -> int:
    """The same pipe without blocking. Opened anew where that is allowed, so that others who share it keep a blocking one."""
    try:
        return os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        os.set_blocking(descriptor, False)
        return descriptor


class RankLog:
    """Reads one rank's output from `descriptor` (the reading end of a pipe, ours to close)."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        descriptor: int,
        rank: int,
        output: Output,
        on_line: Optional[Callable[[str], None]] = None,
    ) -> None:
        os.set_blocking(descriptor, False)
        self._loop = loop
        self._descriptor = descriptor
        self._prefix = f"[rank {rank}] "
        self._output = output
        self._on_line = on_line
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line = ""
        self._returned = False  # the line so far ended in a carriage return: what follows replaces it
        self._passed_on = False  # the timer has emitted the beginning of this line
        self._held: Optional[asyncio.TimerHandle] = None
        self._tail: Deque[str] = deque()
        self._tail_size = 0
        self._open = True
        loop.add_reader(descriptor, self._ready)

    def _ready(self) -> None:
        self._read()
        if self._open and self._output.full:
            self._loop.remove_reader(self._descriptor)
            self._output.when_free(self._resume)

    def _resume(self) -> None:
        if self._open:
            self._loop.add_reader(self._descriptor, self._ready)

    def _read(self) -> bool:
        try:
            data = os.read(self._descriptor, CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        self._take(self._decoder.decode(data, not data))
        if not data:
            self._loop.remove_reader(self._descriptor)
        return bool(data)

    def drain(self) -> None:
        """Reads what a rank that has just ended left in its pipe (a pipe holds 64 KiB, 1 MiB at most)."""
        for _ in range(1 + (1 << 20) // CHUNK):
            if not self._open or not self._read():
                break
        self._flush_line()

    def close(self) -> None:
        if self._open:
            self.drain()
            self._open = False
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)

    @property
    def text(self) -> str:
        """The last `TAIL_CHARACTERS` or so of what the rank wrote, cleaned."""
        return clean("".join(self._tail) + self._line)

    def _take(self, text: str) -> None:
        lines = text.split("\n")
        for line in lines[:-1]:
            self._append(line)
            self._end_line()
        self._append(lines[-1])
        if self._line and self._held is None:
            self._held = self._loop.call_later(SILENT_SECONDS, self._flush_line)

    def _append(self, text: str) -> None:
        """Adds text without a newline to the line; a carriage return starts it anew."""
        if text and self._returned and not text.startswith("\r"):
            self._line, self._returned = "", False
        if "\r" in text:
            body = text.rstrip("\r")
            self._returned = len(body) < len(text)
            head, _, last = body.rpartition("\r")
            self._line = last if head or "\r" in body else self._line + last
        else:
            self._line += text
        while len(self._line) >= PIECE:
            piece, self._line = self._line[:PIECE], self._line[PIECE:]
            self._emit(piece)

    def _end_line(self) -> None:
        """A newline has come; what the timer has passed on already is not repeated as an empty line."""
        if self._line or not self._passed_on:
            line, self._line = self._line, ""
            self._emit(line)
        self._flush_line()
        self._passed_on = False

    def _flush_line(self) -> None:
        """Passes on the text that has no line end yet."""
        if self._held is not None:
            self._held.cancel()
            self._held = None
        if self._line:
            line, self._line = self._line, ""
            self._emit(line)
            self._passed_on = True
        self._returned = False

    def _emit(self, line: str) -> None:
        self._output.write(f"{self._prefix}{line}\n")
        kept = line[-TAIL_CHARACTERS:] + "\n"
        self._tail.append(kept)
        self._tail_size += len(kept)
        while self._tail_size > TAIL_CHARACTERS and len(self._tail) > 1:
            self._tail_size -= len(self._tail.popleft())
        if self._on_line is not None:
            self._on_line(line)
