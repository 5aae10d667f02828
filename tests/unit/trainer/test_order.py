"""The order of samples is a bijection per epoch, looks random, and is cut among processes without a gap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_trainer.train.data.order import Order, keyed, portions, share, shuffled, uniform


@given(st.integers(1, 3000), st.integers(0, 2**31 - 1), st.integers(0, 50))
def test_each_epoch_uses_each_sample_once(size: int, seed: int, epoch: int) -> None:
    epochs, samples = Order(seed, size).at(epoch * size, (epoch + 1) * size)
    assert (epochs == epoch).all()
    assert sorted(samples) == list(range(size))


@given(st.integers(1, 500), st.integers(0, 10_000), st.integers(0, 300), st.integers(1, 9))
def test_a_position_means_the_same_sample_however_it_is_asked_for(size: int, start: int, count: int, world: int) -> None:
    order = Order(7, size)
    whole = np.stack(order.at(start, start + count))
    parts = [np.stack(order.at(*share(start, start + count, rank, world))) for rank in range(world)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)


def test_epochs_and_seeds_differ() -> None:
    orders = [Order(seed, 1000).at(epoch * 1000, (epoch + 1) * 1000)[1] for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9


@pytest.mark.parametrize("size", [64, 100, 1797])
def test_every_sample_is_equally_likely_at_every_place(size: int) -> None:
    """Chi-square over 4,000 epochs of where four samples land; the bound is far beyond what chance does (p about 1e-9)."""
    epochs = np.arange(4000)
    for offset in (0, 1, size // 2, size - 1):
        counts = np.bincount(shuffled(3, epochs, np.full(4000, offset), size), minlength=size)
        expected = 4000 / size
        statistic = ((counts - expected) ** 2 / expected).sum()
        assert abs(statistic - (size - 1)) < 6 * (2 * (size - 1)) ** 0.5


def test_neighbours_do_not_stay_together() -> None:
    samples = Order(0, 10_000).at(0, 10_000)[1]
    assert abs(np.corrcoef(samples[:-1], samples[1:])[0, 1]) < 0.05
    assert np.mean(np.abs(np.diff(samples)) == 1) < 0.002


@given(st.integers(0, 1000), st.integers(0, 40), st.integers(1, 40))
def test_portions_cover_every_share(count: int, micro_batch: int, world: int) -> None:
    passes, most = portions(count, micro_batch, world)
    largest = max(last - first for first, last in (share(0, count, rank, world) for rank in range(world)))
    assert passes * most >= largest
    assert not micro_batch or most <= micro_batch


def test_hashed_numbers_are_uniform() -> None:
    numbers = uniform(keyed(1, np.arange(100_000)))
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 0.005 and abs(numbers.var() - 1 / 12) < 0.002
