"""How fast a run is, from numbers and times that it is told: no clock, no device, no I/O in here.

MFU, the model's share of what the hardware could do at best (Chowdhery et al., 2022), is given for known GPUs only:
samples per second * floating-point operations per sample / (processes * the device's peak for dense bf16).
"""

from __future__ import annotations

from dataclasses import dataclass

PEAK_BF16 = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
}
"""Dense bf16 operations per second as the vendors' data sheets give them; the first name that the device's name contains."""


def peak_of(device_name: str) -> float:
    """The device's peak in operations per second, 0 where it is not known."""
    return next((peak for name, peak in PEAK_BF16.items() if name in device_name), 0.0)


@dataclass(frozen=True, slots=True)
class Rates:
    """Over one interval: all processes' samples and tokens per second, seconds per step, the fraction of time spent waiting for data."""

    samples_per_second: float
    tokens_per_second: float
    step_seconds: float
    data_wait: float
    mfu: float
    """0 where the hardware or the model's operations are not known."""


class Throughput:
    """Told at the end of each interval how far the run is, it says how fast the interval was.

    Args:
        tokens: per sample; flops: per sample; peak: of all devices together, operations per second.
    """

    def __init__(self, now: float, tokens: int, flops: float, peak: float) -> None:
        self._tokens, self._flops, self._peak = tokens, flops, peak
        self._now, self._steps, self._samples, self._waited = now, 0, 0, 0.0

    def skip(self, seconds: float) -> None:
        """Leave out time that was not training: an evaluation, a checkpoint that had to be waited for."""
        self._now += seconds

    def interval(self, now: float, steps: int, samples: int, waited: float) -> Rates:
        """The rates since the last call.

        Args:
            steps, samples: done in all since the start; waited: seconds waited for data in all.
        """
        seconds = max(now - self._now, 1e-9)
        done, count, wait = steps - self._steps, samples - self._samples, waited - self._waited
        self._now, self._steps, self._samples, self._waited = now, steps, samples, waited
        rate = count / seconds
        mfu = rate * self._flops / self._peak if self._peak else 0.0
        return Rates(rate, rate * self._tokens, seconds / max(done, 1), min(wait / seconds, 1.0), mfu)
