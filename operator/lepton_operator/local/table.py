"""What `lepton run` shows: a live table on a terminal; plain lines, each once, into anything else.

All of it is written by a thread of its own: a terminal that is stopped, or a pipe that nobody reads, must not stop the operator.
"""

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lepton_operator.decision import view
from lepton_operator.local.follow import Follower
from lepton_operator.local.store import RunDirectory
from lepton_operator.local.validation import NOT_CHECKED
from lepton_operator.status import Status
from lepton_operator.substrate import Event
from lepton_operator.worker import Agent

EVENTS_SHOWN = 8
PLAIN_SECONDS = 5.0
PERIOD_SECONDS = 0.1
COLOURS = {"Running": "green", "Complete": "green", "Failed": "red", "Recovering": "yellow"}


class Screen:
    def __init__(self, run: RunDirectory, key: str, follow_logs: bool) -> None:
        self._run, self._key = run, key
        self._console = Console(highlight=False)
        self._follower = Follower(run) if follow_logs or not self._console.is_terminal else None
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._started = time.monotonic()
        self._said = 0.0
        self._last = ""
        self._waiting: deque[str] = deque()  # sentences that are not written yet
        self._seen: tuple[Status, Sequence[Agent]] = (Status(), ())
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._paint_on, name="screen", daemon=True)

    # What others tell; none of it waits for the terminal.

    def begin(self, metrics_port: int, adopted: int, checkpoints: str) -> None:
        self.say(f"job {self._key} runs in {self._run.path}; metrics: http://127.0.0.1:{metrics_port}/metrics")
        self.say(NOT_CHECKED)
        if adopted:
            self.say(f"{adopted} living workers of an earlier run were taken up")
        if checkpoints:
            self.say(f"checkpoints of an earlier job are in {checkpoints}; --fresh forgets them")
        self._thread.start()

    def say(self, text: str) -> None:
        self._waiting.append(f"lepton: {text}")

    def event(self, event: Event) -> None:
        line = f"{time.monotonic() - self._started:7.2f} s  {event.reason}: {event.message}"
        self._events.append(line)
        if self._live is None:
            self.say(line.strip())

    def show(self, status: Status, agents: Sequence[Agent]) -> None:
        self._seen = (status, agents)

    def end(self) -> None:
        """Writes what is left, and the last word about the job; waits for a slow reader."""
        if not self._thread.ident:
            return
        self._ending.set()
        self._thread.join()
        if self._live is not None:
            self._live.stop()
        status, _ = self._seen
        try:
            if status.state == "Complete":
                print(f"lepton: Complete: {self._end_summary(status)}", flush=True)
        except BrokenPipeError:
            _give_up_output()
        if status.state == "Failed":
            print(f"lepton: Failed: {status.message}", file=sys.stderr, flush=True)
            if status.last_failure and status.last_failure.log_tail:
                print(status.last_failure.log_tail, file=sys.stderr, flush=True)

    # The thread.

    def _paint_on(self) -> None:
        try:
            if self._live is not None:
                self._live.start()
            while True:
                last = self._ending.wait(PERIOD_SECONDS)
                self._paint(last)
                if last:
                    return
        except BrokenPipeError:
            _give_up_output()

    def _paint(self, last: bool) -> None:
        while self._waiting:
            text = self._waiting.popleft()
            if self._live is not None:
                self._console.print(text, markup=False)
            else:
                print(text, flush=True)
        for line in self._follower.lines(last) if self._follower is not None else ():
            if self._live is not None:
                self._console.print(line, markup=False)
            else:
                print(line, flush=True)
        status, agents = self._seen
        if self._live is not None:
            self._live.update(self._table(status, agents), refresh=True)
            return
        summary = self._summary(status, agents)
        if time.monotonic() - self._said >= PLAIN_SECONDS and summary != self._last and not last:
            self._said, self._last = time.monotonic(), summary
            print(f"lepton: {summary}", flush=True)

    def _summary(self, status: Status, agents: Sequence[Agent]) -> str:
        speaker = _speaker(agents)
        parts = [status.state or "Pending", f"workers {status.workers.summary or '-'}", *_round(status)]
        if speaker is not None:
            seen = speaker.progress
            parts.append(f"step {seen.step}" + (f"/{seen.total_steps}" if seen.total_steps else ""))
            parts += [f"loss {view.loss_text(seen.loss)}"] if seen.loss is not None else []
            parts += [f"{view.rate(seen.samples_per_second)} samples/s"] if seen.samples_per_second else []
        return ", ".join(parts)

    def _end_summary(self, status: Status) -> str:
        seen = status.progress
        parts = _round(status) + ([] if seen.step is None else [f"step {seen.step}"])
        parts += [f"loss {seen.loss}"] if seen.loss else []
        parts += [f"restarts {status.restarts.total}", f"goodput {status.goodput.ratio or '-'}"]
        return ", ".join(parts)

    def _table(self, status: Status, agents: Sequence[Agent]) -> Group:
        head = Text.assemble(
            (f"{self._key}  ", "bold"),
            (status.state or "Pending", COLOURS.get(status.state, "white")),
            f"  {self._summary(status, agents).partition(', ')[2]}",
            f"  restarts {status.restarts.total}",
            f"  goodput {status.goodput.ratio or '-'}",
        )
        table = Table("WORKER", "GENERATION", "RANK", "STATE", "STEP", "LOSS", box=None, pad_edge=False)
        for agent in sorted(agents, key=lambda a: (a.worker, a.joined)):
            seen = agent.progress
            table.add_row(
                str(agent.worker),
                str(agent.state.generation or "-"),
                str(agent.state.group_rank) if agent.state.generation else "-",
                agent.state.phase if agent.connected else "gone",
                "-" if seen.step is None else str(seen.step),
                view.loss_text(seen.loss) or "-",
            )
        return Group(head, table, *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in list(self._events)))


def _round(status: Status) -> list[str]:
    """Of a job that is trained in rounds: which one, and what the metric is."""
    seen = status.evaluation
    if seen is None:
        return []
    return [f"round {seen.round}", *([f"{seen.metric} {seen.value}"] if seen.value else [])]


def _speaker(agents: Sequence[Agent]) -> Agent | None:
    spoken = [a for a in agents if a.connected and a.progress.step is not None]
    return min(spoken, key=lambda a: a.state.group_rank) if spoken else None


def _give_up_output() -> None:
    """Whoever read our output is gone (`| head`): the job goes on, and Python has nothing left to complain about at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
