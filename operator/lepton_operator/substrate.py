"""What makes workers exist: the border between deciding and acting. Pods on a cluster (`client`), processes on one machine (`local`).

`reconciler` drives either through this protocol, so there is one plan, one coordinator and one agent, whatever the workers are made of.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from lepton_operator.job import Job
from lepton_operator.worker import Worker


class Conflict(Exception):
    """The object changed since it was read (HTTP 409): no error, read again and plan again."""


class Gone(Exception):
    """The object is no longer there (HTTP 404, or another UID of the same name): nothing to do, plan again."""


class Unavailable(Exception):
    """Nobody answers (connection refused, time-out, 429, 5xx): try again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Rejected(Exception):
    """The request was understood and refused (quota, LimitRange, admission, a foreign object of our name, forbidden).

    `reason` is a CamelCase word for a condition, `message` the refuser's own words, for the user.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class Event:
    """One line of `kubectl describe`. `reason` is CamelCase and documented in docs/troubleshooting.md."""

    type: str  # Normal | Warning
    reason: str
    message: str
    action: str = "Reconcile"


@dataclass(frozen=True, slots=True)
class Served:
    """What there is of the serving of a job's model."""

    exists: bool = False  # something of ours
    foreign: str = ""  # "a Service named digits-serve" that is not this job's; empty: there is none
    current: bool = False  # all is as the job asks
    ready: int = 0  # pods
    trouble: str = ""  # CamelCase, with its message in the words of whoever complains
    trouble_message: str = ""


class Substrate(Protocol):
    serves: bool
    """Whether models are served here at all."""

    def job(self, key: str) -> Job | None:
        """The newest known job of "namespace/name"; None when it is gone. Raises `JobError` when it cannot be read."""

    def workers(self, job: Job) -> list[Worker]:
        """Every worker whose controller owner is this job's UID."""

    async def create_worker(self, job: Job, name: str, index: int) -> Worker:
        """Makes one worker; an existing one of this name counts as success only if this job's UID owns it.

        Raises `Rejected`, `Unavailable`."""

    async def delete_worker(self, job: Job, worker: Worker, grace_seconds: float | None) -> None:
        """Ends one worker, conditional on its UID. Raises `Conflict`, `Gone`, `Unavailable`."""

    async def write_status(self, job: Job, status: dict[str, Any]) -> None:
        """Replaces the job's status, conditional on `job.resource_version`. The written job is in the cache when this returns.

        Raises `Conflict`, `Gone`, `Rejected`, `Unavailable`."""

    async def ensure_service(self, job: Job) -> None:
        """The headless Service of a job that asked for `intraJobCommunication`. Raises `Rejected`, `Unavailable`."""

    async def served(self, job: Job, directory: str) -> Served:
        """How the serving of the model in `directory` is. Raises `Rejected`, `Unavailable`."""

    async def serve(self, job: Job, directory: str) -> None:
        """Makes what serves that model, or puts it right. Raises `Rejected`, `Conflict`, `Unavailable`."""

    async def stop_serving(self, job: Job) -> None:
        """Takes away what was made for it. Raises `Rejected`, `Conflict`, `Unavailable`."""

    def checkpoints(self, job: Job) -> str:
        """The directory of the job's checkpoints as its workers see it, without the round's; empty where it keeps none."""

    async def emit(self, job: Job, event: Event) -> None:
        """Tells the user; never raises: a lost event is logged."""
