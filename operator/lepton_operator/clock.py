"""The one place where the operator reads the time. Pure modules are handed a `Clock` instead.

`mono` is CLOCK_BOOTTIME: it never steps, it counts the time that a machine was suspended (a lease ages meanwhile), and it is the same for
all processes of a machine, so the operator and its coordinator can compare moments.
"""

import time

from lepton_operator.worker import Clock


def mono() -> float:
    """Seconds since the machine booted, suspended time included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def now() -> Clock:
    return Clock(wall=time.time(), mono=mono())
