"""The facts that `plan` decides from: what is known of a job's workers (pods or local processes) and of the agents inside them.

Plain data without behaviour of its own; `cache` and `coordinator` make it, `plan` and `generation` read it.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from lepton_trainer.protocol.messages import Progress, State


@dataclass(frozen=True, slots=True)
class Clock:
    """The moment of a decision: `wall` in unix seconds (for what is written into status), `mono` in seconds of a clock that never steps."""

    wall: float
    mono: float


class Phase(StrEnum):
    """A worker's life as its substrate sees it."""

    PENDING = "Pending"  # made, its agent's process is not running yet
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"  # ended with 0
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class Worker:
    """One pod (or local agent process) of a job, projected to what decisions need."""

    name: str
    uid: str
    index: int
    phase: Phase
    resource_version: str = ""
    created: float = 0.0  # unix seconds
    deleting: bool = False  # has a deletionTimestamp
    node: str = ""
    node_ready: bool = True
    scheduled: bool = True
    trouble: str = ""  # a reason such as ImagePullBackOff, Unschedulable, CreateContainerConfigError; empty: none
    trouble_message: str = ""  # in the words of whoever reported it
    exit_code: int | None = None  # of the agent's container
    signal: int | None = None
    oom_killed: bool = False
    evicted: str = ""  # reason when somebody evicted or preempted it, e.g. "PreemptionByScheduler"
    result: str = ""  # the agent's termination message (JSON of protocol.result), empty when there is none
    started: float = 0.0  # unix seconds, of the agent's container
    template: str = ""  # digest of the pod spec it was made from
    ended: float = 0.0  # unix seconds, of the agent's container
    lingering: bool = False  # the agent's container has ended, but its pod runs on: a sidecar keeps it


@dataclass(frozen=True, slots=True)
class Agent:
    """One agent that joined (or had joined) the coordinator. `mono` times are of the coordinator's machine, which is the operator's."""

    worker: int
    uid: str  # the worker's
    boot: str
    host: str
    procs: int
    state: State
    progress: Progress = field(default_factory=Progress)
    connected: bool = True
    since: float = 0.0  # mono: when the connection came up, or when it dropped
    joined: float = 0.0  # mono: when this boot first joined
    heard: float = 0.0  # mono: last message of any kind
    stepped: float = 0.0  # mono: when its step count last moved; 0: never
    failed_order: int = 0  # rises by one with each failure report that reaches the coordinator: who failed first
    metrics_port: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """A place in a generation: a restarted agent (another `boot`) is another member in the same place."""

    worker: int
    uid: str
    boot: str
    procs: int
    host: str


@dataclass(frozen=True, slots=True)
class MemberOrder:
    """What the coordinator tells one member of a generation (it adds the store's port once rank 0's agent has reported it)."""

    uid: str
    boot: str
    worker: int
    group_rank: int
    rank_offset: int


@dataclass(frozen=True, slots=True)
class GroupOrder:
    """All that the coordinator must deliver for one job; set whole by the operator whenever it changes."""

    job: str  # "namespace/name"
    job_uid: str
    workers: dict[str, int]  # uid -> index: who may join
    number: int = 0  # the current generation; 0: none yet
    members: tuple[MemberOrder, ...] = ()
    world_size: int = 0
    master_host: str = ""
    digest: str = ""
    restarts: int = 0
    max_restarts: int = 0
    shutdown: dict[str, str] = field(default_factory=dict)  # uid -> verdict (protocol.messages.COMPLETE, ...)
    grace_seconds: float = 0.0
    round: int = 0  # of a job that is trained in rounds, with what the round gives its ranks; 0: it is not
    env: dict[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    stop_requested: bool = False  # ask this generation for a coordinated stop; the coordinator drives the rounds of the proposal
    token: str = field(default="", repr=False)  # local mode only: the job's shared secret; empty: projected service-account tokens
