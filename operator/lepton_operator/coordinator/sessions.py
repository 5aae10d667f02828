"""The coordinator's conversation: who may join, who is connected, what each is told. All I/O comes in through `Connection` and `tell`.

It decides nothing about groups: the operator's `GroupOrder`s are delivered, the agents' states and connections are reported. Past the
deadline that the operator's lease gives, it publishes nothing.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lepton_operator.coordinator import identity, messages
from lepton_operator.coordinator.connection import Connection
from lepton_operator.coordinator.delivery import JobDelivery
from lepton_operator.coordinator.identity import Claims, Keys, Unidentified, UnknownKey
from lepton_operator.worker import Clock, GroupOrder
from lepton_trainer.protocol.messages import (
    BAD_MESSAGE,
    BAD_VERSION,
    NOT_LEADER,
    OLDEST_VERSION,
    OVERLOADED,
    SUPERSEDED,
    UNKNOWN_WORKER,
    VERSION,
    Join,
    NoLeader,
    Ping,
    Pong,
    Refused,
    State,
    Telemetry,
    Welcome,
)

TELEMETRY_PER_SECOND = 1000.0
"""Above so many agents each is asked to speak less often than once a second."""
KEYS_EVERY_SECONDS = 5.0
KEYS_GRACE_SECONDS = 10.0
"""So long a coordinator that has just started may still be waiting for the keys: agents that it cannot judge yet come back soon."""
SAY_EVERY_SECONDS = 10.0
STUCK_SECONDS = 10.0
REVIEWS_AT_ONCE = 64
RETRY_SOON, RETRY_LATER = 0.5, 5.0


@dataclass(slots=True)
class JobSessions:
    delivery: JobDelivery
    connections: dict[str, Connection] = field(default_factory=dict)  # by worker uid
    settling: bool = False


class Sessions:
    """`tell` carries a message to the operator, `soon` runs a call after the current burst of input, `freed` hears of each peer that
    joined or went before it joined (a place for another one)."""

    def __init__(
        self,
        *,
        clock: Callable[[], Clock],
        tell: Callable[[Any], None],
        soon: Callable[[Callable[[], None]], Any],
        freed: Callable[[Connection], None],
    ) -> None:
        self._clock, self._tell, self._soon, self._freed = clock, tell, soon, freed
        self._jobs: dict[str, JobSessions] = {}
        self._audience = ""
        self._review = False
        self._keys: Keys | None = None
        self._keys_asked = float("-inf")
        self._began = clock().mono
        self._deadline = 0.0
        self._leading = False
        self._pings = 0
        self._reviews: dict[int, Connection] = {}
        self._review_id = 0
        self._said: dict[str, tuple[float, int]] = {}
        self.connected: set[Connection] = set()

    # What the operator says.

    def configure(self, message: messages.Configure) -> None:
        self._audience, self._review = message.audience, message.review

    def set_keys(self, message: messages.SetKeys) -> None:
        self._keys = Keys(json.loads(message.jwks), message.issuer, self._audience)

    def set_group(self, group: GroupOrder) -> None:
        job = self._jobs.get(group.job)
        if job is None:
            job = self._jobs[group.job] = JobSessions(JobDelivery(group))
        else:
            job.delivery.set_group(group)
        for uid, connection in list(job.connections.items()):
            if uid not in group.workers and uid not in group.shutdown:
                connection.refuse(Refused(UNKNOWN_WORKER, f"{uid} is no worker of {group.job} any more", retry_seconds=RETRY_LATER))
        job.delivery.settle()
        self._publish(job)

    def drop_group(self, name: str) -> None:
        job = self._jobs.pop(name, None)
        for connection in list(job.connections.values()) if job else ():
            connection.refuse(Refused(UNKNOWN_WORKER, f"{name} is not served here any more", retry_seconds=RETRY_LATER))

    def disconnect(self, message: messages.Disconnect) -> None:
        job = self._jobs.get(message.job)
        connection = job.connections.get(message.uid) if job else None
        if connection is not None and connection.boot == message.boot:
            connection.refuse(Refused(UNKNOWN_WORKER, "judged lost; join again", retry_seconds=RETRY_SOON))

    def probe(self, name: str) -> None:
        job = self._jobs.get(name)
        self._pings += 1
        for connection in job.connections.values() if job else ():
            connection.send(Ping(self._pings))

    def lead(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline == 0:
            self._stand_down("another operator leads; ask again")
            for connection in list(self.connected):
                connection.close()
        elif self.may_publish():
            returning = not self._leading
            self._leading = True
            for job in self._jobs.values() if returning else ():
                self._publish(job)

    def may_publish(self) -> bool:
        """Looked at before each word, not remembered: this process may have been stopped for long in between."""
        return self._clock().mono < self._deadline

    def _stand_down(self, why: str) -> None:
        if self._leading:
            self._leading = False
            for connection in self.connected:
                connection.send(NoLeader(why))

    def round(self) -> None:
        """Call it about ten times a second."""
        if self._leading and not self.may_publish():
            self.say(logging.WARNING, "lease", "the lease was not renewed in time: nothing is published until it is")
            self._stand_down("this operator's lease was not renewed; ask again")
        now = self._clock().mono
        for connection in [c for c in self.connected if c.stuck_since]:
            if connection.stuck_since < 0:
                connection.stuck_since = now
            elif now - connection.stuck_since > STUCK_SECONDS:
                self.say(logging.WARNING, "stuck", f"{connection.peer} has not read for {STUCK_SECONDS:.0f} s", connection.job)
                connection.abort()

    # What connections say (connection.Audience).

    def received(self, connection: Connection, message: Any) -> None:
        if not connection.joined:
            if isinstance(message, Join) and connection.pending is None:
                self._join(connection, message)
            elif connection.pending is None:
                connection.refuse(Refused(BAD_MESSAGE, f"the first message must be Join, not {type(message).__name__}"))
        elif isinstance(message, State):
            self._state(connection, message)
        elif isinstance(message, Telemetry | Pong):
            now = self._clock().mono
            self._tell(messages.Progressed(connection.job, connection.uid, connection.boot, message.progress, now))

    def closed(self, connection: Connection) -> None:
        if connection.joined:
            self._leave(connection, "the connection was closed")
        else:
            connection.pending = None
            self._freed(connection)

    def noise(self, connection: Connection, problem: str) -> None:
        self.say(logging.WARNING, "noise", f"{connection.peer} sent what is no message of ours: {problem}", connection.job)

    # Joining.

    def _join(self, connection: Connection, join: Join) -> None:
        try:
            self._check_version(join)
            group = self._group(join)
            if group.token:
                identity.check_secret(join, group)
                self._admit(connection, join)
            elif self._keys is not None and len(self._keys):
                self._admit_claims(connection, join, self._keys.verify(join.token, self._clock().wall))
            else:
                self._ask_review(connection, join)
        except Unidentified as error:
            self._reject(connection, join, error)

    def _check_version(self, join: Join) -> None:
        if join.version < OLDEST_VERSION:
            speaks = f"the agent speaks version {join.version} of the protocol, this operator {OLDEST_VERSION} to {VERSION + 1}"
            raise Unidentified(f"{speaks}: recreate the pod, so that it gets the agent of this operator", BAD_VERSION)
        if join.version > VERSION + 1:
            speaks = f"the agent speaks version {join.version} of the protocol, this operator {OLDEST_VERSION} to {VERSION + 1}"
            raise Unidentified(f"{speaks}: upgrade the operator", BAD_VERSION)

    def _group(self, join: Join) -> GroupOrder:
        if not self.may_publish():
            raise Unidentified("this operator does not lead; ask again", NOT_LEADER)
        job = self._jobs.get(join.job)
        if job is None:
            raise Unidentified(f"job {join.job} is not known here (yet)", UNKNOWN_WORKER)
        return job.delivery.group

    def _admit_claims(self, connection: Connection, join: Join, claims: Claims) -> None:
        identity.check_claims(join, claims)
        self._admit(connection, join)

    def _ask_review(self, connection: Connection, join: Join) -> None:
        if not self._review:
            self._want_keys("")
            raise Unidentified("the cluster's signing keys are not known yet; try again", OVERLOADED)
        if len(self._reviews) >= REVIEWS_AT_ONCE:
            raise Unidentified("too many tokens wait for a review; try again", OVERLOADED)
        self._review_id += 1
        self._reviews[self._review_id] = connection
        connection.pending = join
        self._tell(messages.Review(self._review_id, join.token))

    def reviewed(self, message: messages.Reviewed) -> None:
        connection = self._reviews.pop(message.id, None)
        join = connection.pending if connection is not None else None
        if connection is None or join is None:
            return
        connection.pending = None
        try:
            if not message.uid:
                raise Unidentified(f"the API server does not vouch for the token: {message.problem}")
            self._group(join)
            self._admit_claims(connection, join, Claims(message.namespace, message.uid))
        except Unidentified as error:
            self._reject(connection, join, error)

    def _want_keys(self, kid: str) -> None:
        now = self._clock().mono
        if now - self._keys_asked >= KEYS_EVERY_SECONDS:
            self._keys_asked = now
            self._tell(messages.KeysWanted(kid))

    def _reject(self, connection: Connection, join: Join, error: Unidentified) -> None:
        if isinstance(error, UnknownKey):
            self._want_keys(error.kid)
        starting = self._keys is None and self._clock().mono - self._began < KEYS_GRACE_SECONDS
        soon = starting or isinstance(error, UnknownKey) or error.code in (NOT_LEADER, UNKNOWN_WORKER, OVERLOADED)
        if error.code != NOT_LEADER:
            who = f"worker {join.worker} ({join.worker_uid}, from {connection.peer})"
            self.say(logging.WARNING, f"{error.code} {join.job}", f"{who} may not join: {error}", join.job)
        final = error.code == BAD_VERSION and join.version < OLDEST_VERSION
        connection.refuse(Refused(error.code, str(error), final=final, retry_seconds=RETRY_SOON if soon else RETRY_LATER))

    def _admit(self, connection: Connection, join: Join) -> None:
        job = self._jobs[join.job]
        identity.check_place(join, job.delivery.group)
        older = job.connections.pop(join.worker_uid, None)
        if older is not None:
            if older.boot != join.boot:
                self._gone(older, "another life of this agent has joined")
            older.refuse(Refused(SUPERSEDED, "a newer connection of this worker has taken over", final=True))
        connection.job, connection.uid, connection.boot = join.job, join.worker_uid, join.boot
        connection.heard_seq = join.state.seq
        job.connections[join.worker_uid] = connection
        self.connected.add(connection)
        self._freed(connection)
        self._tell(
            messages.Joined(
                job=join.job,
                uid=join.worker_uid,
                boot=join.boot,
                worker=join.worker,
                host=join.host,
                procs=join.procs,
                metrics_port=join.metrics_port,
                state=join.state,
                progress=join.progress,
                at=self._clock().mono,
            )
        )
        connection.send(Welcome(VERSION, telemetry_seconds=max(1.0, len(self.connected) / TELEMETRY_PER_SECOND)))
        if self.may_publish():
            connection.send_order(job.delivery.order((join.worker_uid, join.boot)))
        self._heard(job, connection, join.state)

    # Once joined.

    def _state(self, connection: Connection, state: State) -> None:
        if state.seq <= connection.heard_seq:
            return  # repeated or overtaken: the newest counts
        connection.heard_seq = state.seq
        self._tell(messages.Reported(connection.job, connection.uid, connection.boot, state, self._clock().mono))
        job = self._jobs.get(connection.job)
        if job is not None and job.connections.get(connection.uid) is connection:
            self._heard(job, connection, state)

    def _heard(self, job: JobSessions, connection: Connection, state: State) -> None:
        if job.delivery.heard((connection.uid, connection.boot), state) and not job.settling:
            job.settling = True
            self._soon(lambda: self._settle(job))

    def _settle(self, job: JobSessions) -> None:
        job.settling = False
        if job.delivery.settle():
            self._publish(job)

    def _publish(self, job: JobSessions) -> None:
        if self.may_publish():
            for uid, connection in job.connections.items():
                connection.send_order(job.delivery.order((uid, connection.boot)))

    def _leave(self, connection: Connection, why: str) -> None:
        self.connected.discard(connection)
        job = self._jobs.get(connection.job)
        if job is not None and job.connections.get(connection.uid) is connection:
            del job.connections[connection.uid]
            self._gone(connection, why)
        elif job is None:
            self._tell(messages.Dropped(connection.job, connection.uid, connection.boot, self._clock().mono, why))

    def _gone(self, connection: Connection, why: str) -> None:
        self._jobs[connection.job].delivery.dropped((connection.uid, connection.boot))
        self._tell(messages.Dropped(connection.job, connection.uid, connection.boot, self._clock().mono, why))

    def say(self, level: int, kind: str, text: str, job: str = "") -> None:
        """A log line of the operator's, at most one of a kind in ten seconds: a peer that misbehaves must not fill a disk."""
        now = self._clock().mono
        last, held = self._said.get(kind, (float("-inf"), 0))
        if now - last < SAY_EVERY_SECONDS:
            self._said[kind] = (last, held + 1)
            return
        if len(self._said) > 1000:
            self._said.clear()
        self._said[kind] = (now, 0)
        self._tell(messages.Said(level, text + (f" ({held} more like it)" if held else ""), job))
