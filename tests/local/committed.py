"""Reads what scripts/ledger.py wrote down, and says whether each committed step was made once, by all ranks, with all of its samples."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

BATCH = 12


@dataclass
class Made:
    """One generation that began to run."""

    world: int
    resumed: set[int]  # what its ranks resumed from: one step, if all is well
    pids: dict[int, int]  # by rank
    port: int
    ranks: dict[int, list[int]] = field(default_factory=dict)  # step -> ranks that made it
    samples: dict[int, list[int]] = field(default_factory=dict)  # step -> samples that were consumed


class Ledger:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[int, Made] = {}
        self._read = 0  # bytes of the ledger that are in `_made`

    def generations(self) -> dict[int, Made]:
        file = self.folder / "ledger"
        if not file.exists():
            return self._made
        with file.open() as opened:
            opened.seek(self._read)
            text = opened.read()
        whole = text[: text.rfind("\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            self._take(*line.split())
        return self._made

    def _take(self, word: str, *values: str) -> None:
        numbers = list(map(int, values))
        if word == "start":
            generation, rank, world, resumed, pid, port = numbers
            made = self._made.setdefault(generation, Made(world, set(), {}, port))
            made.resumed.add(resumed)
            made.pids[rank] = pid
        elif word == "step":
            generation, step, rank, *samples = numbers
            self._made[generation].ranks.setdefault(step, []).append(rank)
            self._made[generation].samples.setdefault(step, []).extend(samples)

    @property
    def newest(self) -> int:
        return max(self.generations(), default=0)

    def new_steps(self) -> int:
        """How many steps beyond all that was made before all ranks of the newest generation have made."""
        *older, newest = self.generations().values()
        before = max((step for made in older for step in made.ranks), default=0)
        return sum(1 for step, ranks in newest.ranks.items() if len(ranks) == newest.world and step > before)

    def made_again(self, after: int) -> int:
        """How many steps the generations beyond `after` made that the one before them had made."""
        again, last = 0, 0
        for number, made in sorted(self.generations().items()):
            if made.ranks:
                again += max(0, last - min(made.resumed)) if number > after else 0
                last = max(made.ranks)
        return again

    def end_at(self, step: int) -> None:
        """The training ends with this step."""
        self._put("end", str(step))

    def fault(self, rank: int, word: str) -> None:
        """`rank` commits it at its next step."""
        self._put(f"fault-{rank}", word)

    def fault_at_start(self, rank: int, word: str) -> None:
        """The process that is `rank` next commits it when it starts, before it joins its group."""
        self._put(f"start-fault-{rank}", word)

    def _put(self, name: str, text: str) -> None:
        part = self.folder / f".{name}"
        part.write_text(text)
        part.replace(self.folder / name)

    @property
    def top(self) -> int:
        """The highest step that anybody has made."""
        return max((step for made in self.generations().values() for step in made.ranks), default=0)

    def wrong(self, steps: int) -> list[str]:
        """What contradicts "each of the steps 1..`steps` is in the line exactly once, made by all ranks, with each of its samples once"."""
        problems: list[str] = []
        made = sorted(self.generations().items())
        for number, generation in made:
            if len(generation.resumed) != 1:
                problems.append(f"the ranks of generation {number} resumed from different steps: {sorted(generation.resumed)}")
        committed: Counter[int] = Counter()
        for (number, generation), after in zip(made, [*made[1:], None], strict=True):
            end = steps if after is None else min(after[1].resumed)
            for step in range(min(generation.resumed) + 1, end + 1):
                committed[step] += 1
                ranks, samples = sorted(generation.ranks.get(step, ())), sorted(generation.samples.get(step, ()))
                if ranks != list(range(generation.world)):
                    problems.append(f"step {step} of generation {number} was made by ranks {ranks} of {generation.world}")
                if samples != list(range((step - 1) * BATCH, step * BATCH)):
                    problems.append(f"step {step} of generation {number} consumed {samples}")
        problems += [f"step {step} is committed {committed[step]} times" for step in range(1, steps + 1) if committed[step] != 1]
        return problems
