"""The one definition of what agents and the coordinator tell each other; both sides import it.

The protocol carries *levels, not edges*: an agent sends its whole `State` whenever that changes, the coordinator sends each agent the whole
`Order` it should be following. Either may be lost, repeated or overtaken without harm: each carries a sequence number of its connection and
the newest wins. A generation's number fences: an agent refuses an order for a lower one than it has seen.

Skew: a message may have fields that the reader does not know (ignored) and lack fields that have defaults; an unknown message type is
ignored. So two versions apart by one speak with each other; `Join.version` lets a later coordinator refuse what it no longer understands.

Standard library only, Python >= 3.9.
"""

from dataclasses import dataclass, field
from typing import Dict, Optional, Tuple

VERSION = 1
OLDEST_VERSION = 1

# Phases of an agent, in `State.phase`.
IDLE = "idle"  # joined, no processes
PREPARED = "prepared"  # old processes are gone; rank 0's agent has the store open and tells its port
RUNNING = "running"  # all processes of the generation are started
FAILED = "failed"  # a process of the generation failed; the others on this worker are killed
SUCCEEDED = "succeeded"  # all processes of the generation ended with 0
STOPPED = "stopped"  # all ended after a coordinated stop was committed, or were killed on an order: neither success nor failure

# Verdicts, in `Order.shutdown`: the agent stops its processes, exits with the code that belongs to it.
COMPLETE = "complete"
JOB_FAILED = "job-failed"
REMOVED = "removed"  # scaled away or replaced

# Codes of `Refused`. The agent tries again unless `final`.
NOT_LEADER = "not-leader"
UNKNOWN_WORKER = "unknown-worker"
BAD_TOKEN = "bad-token"
BAD_MESSAGE = "bad-message"
BAD_VERSION = "bad-version"
SUPERSEDED = "superseded"
OVERLOADED = "overloaded"


@dataclass(frozen=True)
class ProcessExit:
    """How one process of a worker ended; the first that failed comes first in `State.exits`."""

    rank: int
    local_rank: int
    exit_code: Optional[int] = None  # None when a signal ended it
    signal: Optional[int] = None
    oom_killed: bool = False
    witness: bool = False  # it failed inside a collective: most likely somebody else is the cause
    error: str = ""  # "ValueError: ... (train.py:42)": the exception's last line and where it was raised in the user's code
    traceback: str = ""  # the first Python traceback, at most 4 KiB, its end
    log_tail: str = ""  # at most 2 KiB of the process's own output
    time: float = 0.0  # unix seconds, the agent's clock


@dataclass(frozen=True)
class Notice:
    """Something that a rank wants the job's user to read, such as a checkpoint that could not be saved."""

    generation: int
    number: int  # rises within a generation
    reason: str  # one CamelCase word
    message: str  # a sentence, at most 400 bytes


@dataclass(frozen=True)
class Progress:
    """What the ranks of one worker have reported, from its lowest rank; counters are those of this agent's life, over all generations."""

    generation: int = 0
    step: Optional[int] = None
    total_steps: Optional[int] = None
    loss: Optional[str] = None  # repr of a float; "nan", "inf", "-inf" where it is not finite
    samples_total: float = 0.0
    tokens_total: float = 0.0
    steps_total: int = 0
    nonfinite_total: int = 0
    step_seconds: Optional[float] = None  # usual (median of the last) step time
    samples_per_second: Optional[float] = None
    tokens_per_second: Optional[float] = None
    first_step: Optional[int] = None  # the first step reported in this generation
    first_step_time: Optional[float] = None  # unix seconds
    step_age: Optional[float] = None  # seconds since the last step, when this was sent
    checkpoint_step: Optional[int] = None
    checkpoint_path: str = ""
    metrics: Dict[str, str] = field(default_factory=dict)  # report(metrics=...), values as repr of a float
    reported: bool = False  # a rank has called report() (as against fromLogs or nothing)
    notices: Tuple[Notice, ...] = ()  # the newest of each reason, four at most, oldest first


@dataclass(frozen=True)
class StopReply:
    """Where this worker's ranks stand towards a proposed stop (`Order.stop`)."""

    proposal: int
    armed: bool  # every rank of this worker will stop after call `call`
    calls: int  # the most calls of should_stop() that a rank here has made in this generation
    refused: bool = False  # a rank had waited 2 s at the call and went on: this proposal is dead
    can_stop: bool = True  # False: a rank never calls should_stop()


@dataclass(frozen=True)
class State:
    """Everything the coordinator needs to know of an agent; sent whole whenever it changes."""

    seq: int
    phase: str = IDLE
    generation: int = 0  # the one that `phase` speaks of
    highest: int = 0  # the highest number ever seen
    group_rank: int = 0
    group_size: int = 0
    digest: str = ""  # of the members of `generation`, as it was told
    store_port: int = 0
    exits: Tuple[ProcessExit, ...] = ()
    leaving: str = ""  # why this agent is about to go (SIGTERM), empty: it stays
    can_stop: bool = False  # every rank has called should_stop() in this generation
    stop: Optional[StopReply] = None
    warming: bool = False  # its warm parent still imports: a group that grew by this agent now would wait for it
    cold_start: str = ""  # why the warm parent was not used; empty: it was, or there was no start yet
    refusal: str = ""  # an order this agent could not follow (lower generation, bind failure, command not found)
    round: int = 0  # of the order that it follows; an agent from before rounds says 0
    timings: Dict[str, float] = field(default_factory=dict)  # unix seconds: agent_start, warm_ready, order, killed, forked ...


@dataclass(frozen=True)
class Join:
    """The first message on every connection, from the agent."""

    version: int
    job: str  # "namespace/name"
    job_uid: str
    worker: int
    worker_uid: str  # the pod's UID
    boot: str  # new for each life of the agent
    token: str = field(repr=False)  # never in a log line or traceback
    host: str
    procs: int
    state: State
    progress: Progress = Progress()
    metrics_port: int = 0


@dataclass(frozen=True)
class Telemetry:
    progress: Progress


@dataclass(frozen=True)
class Pong:
    """Answer to `Ping`, with the freshest progress: evidence that a group goes on stepping."""

    id: int
    progress: Progress


@dataclass(frozen=True)
class Welcome:
    version: int
    telemetry_seconds: float = 1.0
    silence_seconds: float = 6.0  # without any message for so long, the agent leaves this coordinator


@dataclass(frozen=True)
class Refused:
    code: str
    message: str
    final: bool = False
    retry_seconds: float = 0.0  # a hint; 0: the agent's own back-off


@dataclass(frozen=True)
class NoLeader:
    """This coordinator's lease is over: keep training, ask the Service again."""

    message: str = ""


@dataclass(frozen=True)
class Beat:
    """Sent every 2 s where nothing else is: silence is never life."""


@dataclass(frozen=True)
class Ping:
    id: int


@dataclass(frozen=True)
class StopOrder:
    """A coordinated stop after call `call` of should_stop() in this generation; first proposed, then committed."""

    proposal: int
    call: int
    committed: bool = False


@dataclass(frozen=True)
class Order:
    """Everything an agent should be doing; sent whole whenever it changes.

    `generation` = 0: stand by (old processes, if any, go on: only a new number or `shutdown` ends them). `master_port` = 0: prepare (kill
    the older generation's processes; the master opens its store and reports the port). `master_port` > 0: start.
    """

    seq: int
    generation: int = 0
    group_rank: int = 0
    group_size: int = 0
    rank_offset: int = 0
    world_size: int = 0
    master_host: str = ""
    master_port: int = 0
    digest: str = ""
    restarts: int = 0  # TORCHELASTIC_RESTART_COUNT, LEPTON_JOB_FAILURE_COUNT
    max_restarts: int = 0
    round: int = 0  # of a job that is trained in rounds; levels reported in an earlier one (step, loss, metrics) are forgotten
    env: Dict[str, str] = field(default_factory=dict)  # laid over the pod's own, for this generation's ranks
    args: Tuple[str, ...] = ()  # appended to the command
    stop: Optional[StopOrder] = None
    shutdown: str = ""
    grace_seconds: float = 0.0  # with shutdown: SIGTERM first, SIGKILL after so long; 0: at once


MESSAGES = (Join, State, Telemetry, Pong, Welcome, Refused, NoLeader, Beat, Ping, Order)
