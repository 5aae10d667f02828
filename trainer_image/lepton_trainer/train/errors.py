"""What can go wrong through no fault of the code, said so that the reader can act on it.

A `UserError` is a mistake that the user mends: it ends the program with exit code 2 and one message, never a traceback; Lepton fails
the job at once, because a restart would meet the same. The others end it with exit code 1 and are tried again. Nothing here is raised
for a bug of our own.
"""

from __future__ import annotations


class TrainerError(Exception):
    """One message: what was wrong, where, and what to write or do instead."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", instead: str = "") -> None:
        self.what, self.where, self.instead = what, where, instead
        super().__init__(what)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. {self.instead}" if self.instead else text


class UserError(TrainerError):
    """The configuration, the data or the place to write to has to be changed by the user."""

    exit_code = 2


class NonFiniteLoss(TrainerError):
    """The loss or the gradient became NaN or infinite; no checkpoint was written after the last finite one."""


class Unfit(UserError):
    """The configuration does not go with so many processes; a group that grows again may be right, so this is tried again."""

    exit_code = 1


class OutOfMemory(Unfit):
    """The device's memory did not hold a pass; on more processes it might."""


class Unreachable(TrainerError):
    """The place of the checkpoints, or of data, does not answer; it may later."""


class NotSaved(TrainerError):
    """Training is done, but its last checkpoint could not be saved: without it nothing would be left of the work."""


class Fenced(TrainerError):
    """A newer generation has started on the same checkpoint directory; this process must write nothing more."""
