"""What `lepton run` shows: a live table on a terminal; plain lines, each once, into anything else."""

import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lepton_operator import view
from lepton_operator.local.store import RunDirectory
from lepton_operator.local.validation import NOT_CHECKED
from lepton_operator.status import Status
from lepton_operator.substrate import Event
from lepton_operator.worker import Agent

EVENTS_SHOWN = 8
PLAIN_SECONDS = 5.0
COLOURS = {"Running": "green", "Complete": "green", "Failed": "red", "Recovering": "yellow"}


class Screen:
    def __init__(self, run: RunDirectory, key: str, follow_logs: bool) -> None:
        self._run = run
        self._key = key
        self._console = Console(highlight=False)
        self._terminal = self._console.is_terminal
        self.follows = follow_logs or not self._terminal
        self.period = 0.25 if self._terminal else 0.1
        self._events: deque[str] = deque(maxlen=EVENTS_SHOWN)
        self._live = Live(console=self._console, auto_refresh=False) if self._terminal else None
        self._started = time.monotonic()
        self._said = 0.0
        self._last = ""

    def begin(self, metrics_port: int, adopted: int) -> None:
        self.say(f"job {self._key} runs in {self._run.path}; metrics: http://127.0.0.1:{metrics_port}/metrics")
        self.say(NOT_CHECKED)
        if adopted:
            self.say(f"{adopted} living workers of an earlier run were taken up")
        if self._live is not None:
            self._live.start()

    def say(self, text: str) -> None:
        if self._live is not None and self._live.is_started:
            self._live.console.print(f"lepton: {text}", markup=False)
        else:
            print(f"lepton: {text}", flush=True)

    def event(self, event: Event) -> None:
        line = f"{time.monotonic() - self._started:7.2f} s  {event.reason}: {event.message}"
        self._events.append(line)
        if self._live is None:
            self.say(line.strip())

    def show(self, status: Status, agents: Sequence[Agent], lines: Iterable[str]) -> None:
        for line in lines:
            print(line, flush=True)
        if self._live is not None:
            self._live.update(self._table(status, agents), refresh=True)
            return
        summary = self._summary(status, agents)
        due = time.monotonic() - self._said >= PLAIN_SECONDS
        if due and summary != self._last:
            self._said, self._last = time.monotonic(), summary
            self.say(summary)

    def _summary(self, status: Status, agents: Sequence[Agent]) -> str:
        speaker = _speaker(agents)
        parts = [status.state or "Pending", f"workers {status.workers.summary or '-'}"]
        if speaker is not None:
            seen = speaker.progress
            parts.append(f"step {seen.step}" + (f"/{seen.total_steps}" if seen.total_steps else ""))
            parts += [f"loss {view.loss_text(seen.loss)}"] if seen.loss is not None else []
            parts += [f"{view.rate(seen.samples_per_second)} samples/s"] if seen.samples_per_second else []
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
        return Group(head, table, *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in self._events))

    def end(self, status: Status | None) -> None:
        if self._live is not None:
            self._live.stop()
        if status is None:
            return
        if status.state == "Complete":
            self.say(f"Complete: step {status.progress.step}, goodput {status.goodput.ratio}, restarts {status.restarts.total}")
            return
        print(f"lepton: Failed: {status.message}", file=sys.stderr, flush=True)
        if status.last_failure and status.last_failure.log_tail:
            print(status.last_failure.log_tail, file=sys.stderr, flush=True)


def _speaker(agents: Sequence[Agent]) -> Agent | None:
    spoken = [a for a in agents if a.connected and a.progress.step is not None]
    return min(spoken, key=lambda a: a.state.group_rank) if spoken else None
