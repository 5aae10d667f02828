"""What both demos read from the output of examples/digits.py."""

import re

TRAINING_SAMPLES, GLOBAL_BATCH = 1797 - 360, 96
"""As examples/digits.py has them."""


class NotThere(Exception):
    """The output does not say what was looked for."""


def samples_lost(output: str) -> int:
    """Samples that the steps before the last resumption consumed, less those that the new generation counts as consumed."""
    resumed = re.findall(r"resumed at step (\d+), sample (\d+)", output)
    if not resumed:
        raise NotThere("no worker said where it resumed")
    step, sample = map(int, resumed[-1])
    epochs, steps = divmod(step, -(-TRAINING_SAMPLES // GLOBAL_BATCH))
    return epochs * TRAINING_SAMPLES + steps * GLOBAL_BATCH - sample


def accuracy(output: str) -> str:
    """`held-out accuracy 0.9861`"""
    found = re.findall(r"held-out accuracy [\d.]+", output)
    if not found:
        raise NotThere("no worker printed its accuracy")
    return str(found[-1])
