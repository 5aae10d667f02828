"""Which operator leads: a Lease held by one process at a time, kept in a thread of its own so that nothing in the event loop delays it.

The rules are those of Kubernetes' own leader election: another's claim is over when the Lease has not changed for its duration *by our own
clock* (no two machines' clocks are compared), and every write is conditional on the resourceVersion. Beyond them: the clock counts the time
that a machine was suspended, every request has a deadline, and a renewal says until when its holder may act, counted from before the
request was sent, so that a holder always stops before another may start.
"""

import logging
import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from lepton_operator import clock
from lepton_operator.job import format_micro_time
from lepton_operator.pods.blocking_api import Reply, Unanswered
from lepton_operator.worker import Clock

log = logging.getLogger(__name__)

DURATION_SECONDS = 10
"""How long a holder that says nothing more is believed. With `LOOK_SECONDS` twice, at most 12 s from a SIGKILL to the next leader."""
RENEW_SECONDS = 2.0
LOOK_SECONDS = 1.0
"""How often a standby looks: a Lease that was let go (SIGTERM) is taken within that."""
MARGIN_SECONDS = 1.0
"""How long before its claim is over a holder stops acting: what it has sent by then may still be on its way."""
REQUEST_SECONDS = 2.0


class LeaseApi(Protocol):
    """`blocking_api.BlockingApi`."""

    def request(self, method: str, path: str, body: Mapping[str, Any] | None, timeout: float) -> Reply: ...


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """One version of the Lease."""

    metadata: Mapping[str, Any]
    holder: str
    duration: float
    transitions: int
    acquired: str

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> "LeaseRecord":
        spec = body.get("spec") or {}
        return cls(
            metadata=body.get("metadata") or {},
            holder=str(spec.get("holderIdentity") or ""),
            duration=float(spec.get("leaseDurationSeconds") or DURATION_SECONDS),
            transitions=int(spec.get("leaseTransitions") or 0),
            acquired=str(spec.get("acquireTime") or ""),
        )

    @property
    def version(self) -> str:
        return str(self.metadata.get("resourceVersion", ""))


class LeaseKeeper:
    """Runs for the process's life. The callbacks are called in the keeper's thread; hand them on with `loop.call_soon_threadsafe`.

    `on_acquired()` before the first renewal after not leading, `on_renewed(deadline)` at each (act until then, CLOCK_BOOTTIME seconds),
    `on_lost()` once when a deadline has passed or the Lease is another's, `on_other_holder(identity)` when somebody else is read as its
    holder. A keeper whose API server is away loses, and acquires again when it is back and nobody else has taken the Lease meanwhile.

    `place` names where at most one process runs at a time: the pod (its name). A holder of the same place is the dead process before this
    one, and is not waited for. Empty: there is no such place.
    """

    def __init__(
        self,
        *,
        api: LeaseApi,
        namespace: str,
        name: str,
        on_acquired: Callable[[], None],
        on_renewed: Callable[[float], None],
        on_lost: Callable[[], None],
        on_other_holder: Callable[[str], None],
        place: str = "",
        now: Callable[[], Clock] = clock.now,
    ) -> None:
        self.identity = f"{place or 'operator'}_{uuid.uuid4()}"
        self._place = f"{place}_" if place else ""
        self._api, self._namespace, self._name, self._now = api, namespace, name, now
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._on_acquired, self._on_renewed, self._on_lost, self._on_other_holder = on_acquired, on_renewed, on_lost, on_other_holder
        self._record: LeaseRecord | None = None
        self._seen_at = 0.0  # mono: when `_record` was first seen as it is
        self.unled_since = 0.0
        """mono: the last sign of whoever led before this process began to (of itself, where it only lost its time)"""
        self._certain = False  # False: the Lease may have changed since `_record`, so it is read before it is written
        self._met = ""
        self._led = False
        self._deadline = 0.0
        self._complaint = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    # For other threads.

    @property
    def leading(self) -> bool:
        """Whether this process may act at this moment."""
        return self._now().mono < self._deadline

    @property
    def holder(self) -> str:
        """Whoever was last read as the holder; empty: nobody, or not known yet."""
        record = self._record
        return record.holder if record is not None else ""

    @property
    def term(self) -> int:
        """Rises whenever the Lease goes from one holder to another: the same as before means that nobody else has led since."""
        record = self._record
        return record.transitions if record is not None else 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Lets the Lease go, if it is ours, so that a standby takes over at once. Stop acting first; no callback follows. Blocks for three
        requests at most, so call it off the event loop."""
        self._stopping.set()
        self._thread.join(3 * REQUEST_SECONDS)

    # The thread.

    def _run(self) -> None:
        while not self._stopping.is_set():
            pause = self.turn()
            if self._led:
                pause = min(pause, max(0.0, self._deadline - self._now().mono))
            self._stopping.wait(pause)
        self.release()

    def turn(self) -> float:
        """One look, one renewal or both; seconds until the next is due."""
        self._check_deadline()
        try:
            pause = self._turn()
            self._complain("")
        except Unanswered as error:
            self._certain = False
            self._complain(f"the lease {self._namespace}/{self._name} cannot be kept: {error}")
            pause = LOOK_SECONDS
        self._check_deadline()
        return pause

    def _turn(self) -> float:
        if not self._certain or self.holder != self.identity:
            self._look()
        record = self._record
        if record is not None and not self._free(record):
            self._meet(record.holder)
            return LOOK_SECONDS
        return RENEW_SECONDS if self._claim(record) else LOOK_SECONDS

    def _free(self, record: LeaseRecord) -> bool:
        if record.holder in ("", self.identity) or (self._place and record.holder.startswith(self._place)):
            return True
        return self._now().mono - self._seen_at >= record.duration

    def _look(self) -> None:
        reply = self._api.request("GET", f"{self._collection}/{self._name}", None, REQUEST_SECONDS)
        record = LeaseRecord.read(reply.body) if reply.status == 200 else None
        if record is None or self._record is None or record.version != self._record.version:
            self._record, self._seen_at = record, self._now().mono
        self._certain = True

    def _claim(self, record: LeaseRecord | None) -> bool:
        """Takes or renews it. False: it changed meanwhile, look again."""
        asked = self._now()
        reply = self._write(record, asked.wall, self.identity, DURATION_SECONDS)
        if reply.status in (404, 409):
            self._certain = False
            return False
        if record is not None and record.holder not in ("", self.identity):
            log.info("took the lease %s/%s from %s, which had let it lapse", self._namespace, self._name, record.holder)
        if not self._led:
            self.unled_since = self._seen_at
        self._record, self._seen_at, self._met = LeaseRecord.read(reply.body), asked.mono, ""
        deadline = asked.mono + DURATION_SECONDS - MARGIN_SECONDS
        if self._now().mono < deadline:  # else this process stood still between asking and now: the next renewal counts
            self._deadline = deadline
            if not self._led:
                self._led = True
                log.info("leading as %s", self.identity)
                self._on_acquired()
            self._on_renewed(deadline)
        return True

    def _write(self, record: LeaseRecord | None, wall: float, holder: str, duration: int) -> Reply:
        same = record is not None and record.holder == holder
        spec = {
            "holderIdentity": holder,
            "leaseDurationSeconds": duration,
            "renewTime": format_micro_time(wall),
            "acquireTime": record.acquired if record is not None and same else format_micro_time(wall),
            "leaseTransitions": 0 if record is None else record.transitions if same or not holder else record.transitions + 1,
        }
        body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "spec": spec}
        if record is None:
            metadata: Mapping[str, Any] = {"name": self._name, "namespace": self._namespace}
            return self._api.request("POST", self._collection, {**body, "metadata": metadata}, REQUEST_SECONDS)
        return self._api.request("PUT", f"{self._collection}/{self._name}", {**body, "metadata": record.metadata}, REQUEST_SECONDS)

    def release(self) -> None:
        """Clears the holder, if that is this process."""
        self._deadline, self._led = 0.0, False
        try:
            if not self._certain:
                self._look()
            if self._record is not None and self._record.holder == self.identity:
                self._write(self._record, self._now().wall, "", 1)
                self._certain = False
        except Unanswered as error:
            log.warning("the lease %s/%s could not be let go, it lapses in %d s: %s", self._namespace, self._name, DURATION_SECONDS, error)

    def _meet(self, holder: str) -> None:
        self._deadline = 0.0
        self._check_deadline()
        if holder != self._met:
            self._met = holder
            log.info("%s leads; standing by", holder)
            self._on_other_holder(holder)

    def _check_deadline(self) -> None:
        if self._led and not self.leading:
            self._led = False
            log.warning("the lease %s/%s was not renewed in time or is another's: not leading any more", self._namespace, self._name)
            self._on_lost()

    def _complain(self, complaint: str) -> None:
        """Once for each reason: an API server that is away for an hour is one line, and its return another."""
        if complaint and complaint != self._complaint:
            log.warning("%s", complaint)
        elif self._complaint and not complaint:
            log.info("the lease %s/%s can be kept again", self._namespace, self._name)
        self._complaint = complaint
