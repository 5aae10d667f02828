"""The learning rate as a pure function of the step: a factor between 0 and 1 of the configured rate."""

from __future__ import annotations

import math

from lepton_trainer.train.settings.shared import Schedule


def factor(schedule: Schedule, step: int, total: int) -> float:
    """What the rate of step `step` (from 0) of `total` is multiplied with.

    The warm-up rises to 1 at its last step; cosine and wsd fall towards `final`, which they would reach one step after the last.
    """
    warm = round(schedule.warmup * total)
    if step < warm:
        return (step + 1) / warm
    done = min((step - warm) / max(total - warm, 1), 1.0)
    if schedule.name == "cosine":
        return schedule.final + (1.0 - schedule.final) * 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule.name == "wsd":
        decay = max(round(schedule.decay * total), 1)
        left = min((total - step) / decay, 1.0)
        return schedule.final + (1.0 - schedule.final) * max(left, 0.0)
    if schedule.name == "step":
        return schedule.step_factor ** int(step / max(schedule.step_every * total, 1.0))
    return 1.0
