"""What goes into a plan and what comes out of it: plain data, so that deciding needs no cluster and acting needs no thought."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lepton_operator.decision import goodput
from lepton_operator.decision.evidence import Verdict
from lepton_operator.decision.generation import Generation
from lepton_operator.job import Job
from lepton_operator.status import Status
from lepton_operator.substrate import Event, Served
from lepton_operator.worker import Agent, GroupOrder, Worker


@dataclass(frozen=True, slots=True)
class Rejection:
    """The last creation of a worker was refused, in the refuser's own words."""

    reason: str
    message: str
    mono: float


@dataclass(frozen=True, slots=True)
class World:
    """What is."""

    job: Job
    workers: Sequence[Worker]
    agents: Sequence[Agent]
    manager: str  # this installation, "namespace/release"
    leading_since: float = 0.0  # mono: since when this process decides (and its coordinator listens)
    listening_since: float = 0.0  # mono: since when the coordinator process listens; it may have restarted since `leading_since`
    settled: float = 0.0  # mono: since when no handshakes queue there
    blind: bool = False
    rejection: Rejection | None = None
    checkpoints: str = ""  # the directory of the job's checkpoints as its workers see it, without the round's; empty: it keeps none
    serves: bool = False  # whether models are served on this substrate
    served: Served | None = None  # what there is of it; None: not looked at
    serving_rejection: Rejection | None = None
    claimant_gone: bool = False  # the installation in status.manager has not renewed its Lease for long


@dataclass(frozen=True, slots=True)
class Made:
    """How far the newest generation that has made a step came."""

    generation: int = 0
    step: int = 0
    again: int = 0  # of its steps, those that the one before had made


@dataclass(frozen=True, slots=True)
class Memory:
    """What a leader remembers of a job beyond its status; losing it costs a look at the agents, never a decision."""

    group: Generation | None = None
    formed: float = 0.0  # mono
    reason: str = ""  # why the current generation was made
    ready_since: float | None = None  # mono: since when minReplicas have joined, before the first generation
    broken_since: float | None = None  # mono: first evidence of the interruption that is still going on
    evident_since: float | None = None  # mono: when the current generation was first seen broken
    outcomes: dict[str, Verdict] = field(default_factory=dict)  # uid -> succeeded or stopped, of members: it holds when they are gone
    joined: frozenset[str] = frozenset()  # uids that have been members, of workers that are still there
    pods: dict[str, Worker] = field(default_factory=dict)  # uid -> a member's pod as it was last seen
    stepped: bool = False  # the current generation has reported a step
    top_step: int | None = None  # the highest step of any generation before
    made: Made = field(default_factory=Made)
    stop_since: float | None = None  # mono: a coordinated stop was asked for
    grow_checkpoint: int | None = None  # checkpoint step when somebody began to wait
    lost_at: dict[str, float] = field(default_factory=dict)  # uid -> mono, of workers whose agent was judged lost and is not back
    noticed: dict[str, tuple[int, int]] = field(default_factory=dict)  # uid -> (generation, number) of its newest notice told
    claimed_by: str = ""  # the other installation about which the user has been told
    taken_over: float | None = None  # mono: taken from a dead installation, whose coordinator the agents still look for
    account: goodput.Account = field(default_factory=goodput.Account)
    counters: goodput.Counters = field(default_factory=goodput.Counters)
    written: float = 0.0  # mono of the last status write
    counts_since: float | None = None  # mono: since when the counts differ from those written
    progress_writes: int = 0
    first_step: float | None = None  # mono, of the job in this memory
    ended: float | None = None  # mono: since when the job is seen as ended


@dataclass(frozen=True, slots=True)
class Delete:
    worker: Worker
    why: str
    grace_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: write, then publish, then delete and create, then tell."""

    memory: Memory
    status: Status | None = None  # to be written; None: what is written is right
    order: GroupOrder | None = None  # to be delivered by the coordinator; None: this job is nobody's here
    create: tuple[int, ...] = ()
    delete: tuple[Delete, ...] = ()
    events: tuple[Event, ...] = ()
    serve: str = ""  # the directory of the model that is to be served; empty: there is nothing to do
    stop_serving: bool = False
    probe: bool = False
    wake: float | None = None  # seconds
