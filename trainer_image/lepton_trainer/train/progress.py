"""What a person sees while it trains: a live bar on a terminal, one plain line per interval elsewhere. Rank 0 only."""

from __future__ import annotations

import shutil
from typing import TextIO

from lepton_trainer.train.throughput import Rates


class Progress:
    """Writes to `stream`; `terminal` decides between the bar, drawn over itself, and lines."""

    def __init__(self, stream: TextIO, total: int, terminal: bool) -> None:
        self.stream, self.total, self.terminal = stream, total, terminal
        self._open = False

    def step(self, step: int, epoch: float, loss: float, rate: float, rates: Rates) -> None:
        """Show how far it is after `step`."""
        left = (self.total - step) * rates.step_seconds
        speed = f"{rates.tokens_per_second:,.0f} tokens/s" if rates.tokens_per_second else f"{rates.samples_per_second:,.0f} samples/s"
        facts = f"epoch {epoch:.2f}  loss {loss:.4f}  lr {rate:.2e}  {speed}  {duration(left)} left"
        if not self.terminal:
            self.stream.write(f"step {step}/{self.total}  {facts}\n")
            self.stream.flush()
            return
        width = 24
        filled = width * step // max(self.total, 1)
        bar = "=" * filled + (">" if filled < width else "") + "." * (width - filled - 1)
        line = f"{step}/{self.total} [{bar}] {facts}"[: shutil.get_terminal_size().columns - 1]
        self.stream.write(f"\r\x1b[2K{line}")
        self.stream.flush()
        self._open = True

    def say(self, text: str) -> None:
        """A line that stays."""
        self.close()
        self.stream.write(f"{text}\n")
        self.stream.flush()

    def close(self) -> None:
        """End the live line, so that what follows starts on its own."""
        if self._open:
            self.stream.write("\n")
            self._open = False


def duration(seconds: float) -> str:
    """Seconds as a person says them: 42 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
