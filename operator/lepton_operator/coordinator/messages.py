"""What the operator and its coordinator process tell each other over their socket pair; the framing is that of the agents' protocol.

Like that protocol these are levels: what the operator sends may be sent again at any time (and is, whole, to a coordinator that restarted).
All `at` are CLOCK_BOOTTIME seconds, as the coordinator saw the moment.
"""

from dataclasses import dataclass

from lepton_operator.worker import GroupOrder
from lepton_trainer.protocol.frames import Decoder, encode, registry
from lepton_trainer.protocol.messages import Progress, State

LIMIT = 64 * 1024 * 1024
"""Bytes of one frame between the two processes, which trust each other: a group of 10,000 members takes 2 MB."""


# From the operator.
@dataclass(frozen=True, slots=True)
class Configure:
    """Always the first message. `certificate` and `key` are paths of PEM files, empty: plain TCP, which listens on loopback only."""

    certificate: str = ""
    key: str = ""
    audience: str = ""
    review: bool = False  # tokens that no key verifies are sent to the operator for a TokenReview


@dataclass(frozen=True, slots=True)
class SetGroup:
    order: GroupOrder


@dataclass(frozen=True, slots=True)
class DropGroup:
    job: str


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Close this agent's connection, if it has one: the operator has judged it lost."""

    job: str
    uid: str
    boot: str


@dataclass(frozen=True, slots=True)
class Probe:
    job: str


@dataclass(frozen=True, slots=True)
class Lead:
    """Orders may be published until `deadline`; 0: another leads, let the agents go."""

    deadline: float


@dataclass(frozen=True, slots=True)
class SetKeys:
    jwks: str  # JSON
    issuer: str


@dataclass(frozen=True, slots=True)
class Reviewed:
    """Answer to `Review`; an empty `uid`: the API server does not vouch for the token, `problem` says why."""

    id: int
    namespace: str = ""
    uid: str = ""
    problem: str = ""


# From the coordinator process.
@dataclass(frozen=True, slots=True)
class Ready:
    pid: int


@dataclass(frozen=True, slots=True)
class Joined:
    job: str
    uid: str
    boot: str
    worker: int
    host: str
    procs: int
    metrics_port: int
    state: State
    progress: Progress
    at: float


@dataclass(frozen=True, slots=True)
class Dropped:
    job: str
    uid: str
    boot: str
    at: float
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    job: str
    uid: str
    boot: str
    state: State
    at: float


@dataclass(frozen=True, slots=True)
class Progressed:
    job: str
    uid: str
    boot: str
    progress: Progress
    at: float


@dataclass(frozen=True, slots=True)
class Handshakes:
    """Whether joins queue. While they do, nobody may be called lost for not having come back."""

    queued: bool
    at: float


@dataclass(frozen=True, slots=True)
class KeysWanted:
    """A token names a key that is not among those set."""

    kid: str


@dataclass(frozen=True, slots=True)
class Review:
    id: int
    token: str


@dataclass(frozen=True, slots=True)
class Said:
    """A log line: the operator writes it, so that both processes log in one format to one place."""

    level: int
    text: str
    job: str = ""


TO_COORDINATOR = registry((Configure, SetGroup, DropGroup, Disconnect, Probe, Lead, SetKeys, Reviewed))
TO_OPERATOR = registry((Ready, Joined, Dropped, Reported, Progressed, Handshakes, KeysWanted, Review, Said))


def frame(message: object) -> bytes:
    return encode(message, LIMIT)


def coordinator_decoder() -> Decoder:
    return Decoder(LIMIT, TO_COORDINATOR)


def operator_decoder() -> Decoder:
    return Decoder(LIMIT, TO_OPERATOR)
