"""What the user sees: numbered, named, timed steps, and one kind of error that says why something can't work here."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Refused(Exception):
    """The thing asked for can't work here; the message says what is missing and what to do."""


_lock = threading.Lock()
_count = 0


def say(text: str = "") -> None:
    """Print one line for the user (stderr: stdout carries only answers that a script may read)."""
    with _lock:
        print(text, file=sys.stderr, flush=True)


@contextmanager
def step(name: str, long: bool = False) -> Iterator[list[str]]:
    """Number, name and time what happens inside. What is appended to the yielded list is shown behind the time.

    A `long` step is announced when it begins, so that nobody stares at a silent terminal.
    """
    global _count
    with _lock:
        _count += 1
        number = _count
    if long:
        say(f"{number:3}  {name} ...")
    notes: list[str] = []
    started = time.monotonic()
    try:
        yield notes
    except BaseException:
        say(f"{number:3}  {name:<58} failed after {time.monotonic() - started:.1f} s")
        raise
    say(f"{number:3}  {name:<58} {time.monotonic() - started:6.1f} s" + "".join(f"  {note}" for note in notes))


def wait_until(what: str, ready: Callable[[], bool], timeout: float, interval: float = 0.05) -> None:
    """Wait until `ready()` is true, looking again every `interval` seconds.

    Raises Refused that names `what` after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not ready():
        if time.monotonic() > deadline:
            raise Refused(f"{what}: not after {timeout:.0f} s")
        time.sleep(interval)
