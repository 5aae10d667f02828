"""What the end-to-end tests rest on: the check of a job's ledger finds steps lost or made twice, samples taken by two ranks or none."""

from collections.abc import Callable

import pytest

from trainings import BATCH, Ledger

Generations = dict[int, dict[int, list[dict]]]  # type: ignore[type-arg]


def made(start: int, end: int, world: int) -> dict[int, list[dict]]:  # type: ignore[type-arg]
    """The lines of a generation of `world` ranks that began at `start` and began every step up to `end`."""
    return {
        rank: [{"start": start, "world": world}]
        + [{"step": step + 1, "samples": list(range(step * BATCH + rank, (step + 1) * BATCH, world))} for step in range(start, end)]
        for rank in range(world)
    }


def whole() -> Ledger:
    """Two ranks make 25 steps, one is lost after the checkpoint of step 20, the other goes on alone to step 40, then both to 50."""
    return Ledger({1: made(0, 25, 2), 2: made(20, 40, 1), 4: made(40, 50, 2)}, 50)


def test_a_history_with_losses_and_growth_is_right() -> None:
    ledger = whole()
    ledger.check_committed_once()
    assert (ledger.recomputed(), ledger.worlds(), ledger.step()) == (5, [2, 1, 2], 50)


def resumed_too_late(generations: Generations) -> None:
    generations[2] = made(26, 40, 1)


def resumed_too_early_after_a_commit(generations: Generations) -> None:
    generations[4][1][0]["start"] = generations[4][0][0]["start"] = 41


def sample_twice(generations: Generations) -> None:
    generations[1][1][3]["samples"][0] = generations[1][0][3]["samples"][0]


def sample_left_out(generations: Generations) -> None:
    generations[1][1][3]["samples"].pop()


def rank_missing(generations: Generations) -> None:
    del generations[4][1]


def began_in_the_middle(generations: Generations) -> None:
    generations[1] = made(3, 25, 2)


@pytest.mark.parametrize(
    "spoil", [resumed_too_late, resumed_too_early_after_a_commit, sample_twice, sample_left_out, rank_missing, began_in_the_middle]
)
def test_what_is_lost_or_doubled_is_found(spoil: Callable[[Generations], None]) -> None:
    ledger = whole()
    spoil(ledger.generations)
    with pytest.raises(AssertionError):
        ledger.check_committed_once()


def test_a_last_checkpoint_beyond_what_was_trained_is_found() -> None:
    ledger = whole()
    ledger.final = 51
    with pytest.raises(AssertionError):
        ledger.check_committed_once()
