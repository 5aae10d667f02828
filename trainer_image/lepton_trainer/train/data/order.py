"""Which sample stands at a position of the endless training stream: a pure function of (seed, position), of nothing else.

Position p belongs to epoch `p // size`; within an epoch every sample stands at exactly one place. The number of processes does not
enter, so a run may shrink and grow and still use each sample once per epoch, and one integer, the number of samples consumed, is all
the state that a data loader has.

The shuffle is a balanced Feistel network over the smallest power of four that holds `size`, with cycle walking (Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002): a bijection that needs no memory and answers any position at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
UInt64s = NDArray[np.uint64]

_ROUNDS = 6
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(value: UInt64s) -> UInt64s:
    """Scramble 64-bit numbers (the finaliser of splitmix64, Steele et al., 2014); any shape, wraps around."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def keyed(seed: int, *parts: Int64s | UInt64s | int) -> UInt64s:
    """A 64-bit hash of the seed and each of `parts`, broadcast against one another: random numbers without a state."""
    state = mix(np.asarray([seed], dtype=np.uint64) + _GOLDEN)
    for part in parts:
        state = mix(state + _GOLDEN * (np.atleast_1d(part).astype(np.uint64) + np.uint64(1)))
    return state


def uniform(bits: UInt64s) -> NDArray[np.float64]:
    """Numbers in [0, 1) from hashed ones, of the same shape."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(seed: int, epochs: Int64s, offsets: Int64s, size: int) -> Int64s:
    """The sample at each offset of each epoch.

    Args:
        epochs, offsets: shape [n]; offsets lie in [0, size).
    Returns:
        shape [n], in [0, size); for a fixed epoch a bijection of the offsets.
    """
    half = np.uint64(max(1, (max(size - 1, 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    keys = [keyed(seed, epochs, turn) for turn in range(_ROUNDS)]

    def encipher(value: UInt64s, chosen: NDArray[np.bool_]) -> UInt64s:
        left, right = value >> half, value & mask
        for key in keys:
            left, right = right, left ^ (mix(right + key[chosen]) & mask)
        return (left << half) | right

    everything = np.ones(len(offsets), dtype=np.bool_)
    result = encipher(offsets.astype(np.uint64), everything)
    outside = result >= size
    while outside.any():
        result[outside] = encipher(result[outside], outside)
        outside = result >= size
    return result.astype(np.int64)


@dataclass(frozen=True, slots=True)
class Order:
    """The stream of one job: `size` samples, shuffled anew in each epoch from `seed`."""

    seed: int
    size: int

    def at(self, start: int, stop: int) -> tuple[Int64s, Int64s]:
        """Epochs and sample indices at the positions [start, stop), each of shape [stop - start]."""
        return self.where(np.arange(start, stop, dtype=np.int64))

    def where(self, positions: Int64s) -> tuple[Int64s, Int64s]:
        """Epochs and sample indices at `positions`, each of their shape [n]; a thousand at once cost hardly more than ten."""
        epochs, offsets = positions // self.size, positions % self.size
        return epochs, shuffled(self.seed, epochs, offsets, self.size)


def share(start: int, stop: int, rank: int, world: int) -> tuple[int, int]:
    """The part of the positions [start, stop) that one of `world` processes computes; sizes differ by one at most."""
    count = stop - start
    return start + rank * count // world, start + (rank + 1) * count // world


def portions(count: int, micro_batch: int, world: int) -> tuple[int, int]:
    """How every process cuts its share of `count` samples.

    Returns:
        (passes, most): each process makes the same number of passes, of at most `most` samples each; a process with a smaller
        share makes a last pass over fewer samples or over none. Equal numbers keep collectives inside the passes aligned.
    """
    largest = -(-count // world)
    most = min(micro_batch, largest) if micro_batch else largest
    return -(-largest // max(most, 1)), max(most, 1)
