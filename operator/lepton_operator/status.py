"""The job's status as typed data, and its JSON.

Everything that a new leader needs is here, or comes back from the agents; timers are computed from these times and so survive a restart.
Nothing in it grows with the number of workers.
"""

import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, NewType, TypeVar

from lepton_operator.conditions import Condition
from lepton_operator.job import Json, format_micro_time, format_time, parse_time

Time = NewType("Time", float)
"""Unix seconds, written as RFC 3339 with whole seconds; 0 is absent."""
MicroTime = NewType("MicroTime", float)
"""Unix seconds, written as RFC 3339 with microseconds; 0 is absent."""

Exact = NewType("Exact", float)
"""A number of the user's, written with all its digits; other numbers are rounded."""

HISTORY_LIMIT = 10
RECENT_LIMIT = 101
"""More than recovery.maxRestarts can be."""


@dataclass(frozen=True, slots=True)
class WorkerCounts:
    desired: int = 0
    ready: int = 0  # joined
    active: int = 0  # members of the current generation that are alive
    succeeded: int = 0
    failed: int = 0
    summary: str = ""  # "7/8"


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """The current generation; winning its number by a conditional write of this is what fences."""

    generation: int = 0
    size: int = 0
    master: str = ""  # the master's worker, by name
    digest: str = ""


@dataclass(frozen=True, slots=True)
class ProgressView:
    step: int | None = None
    total_steps: int | None = None
    percent: str = ""
    loss: str = ""
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    throughput: str = ""  # the same, for humans
    eta: str = ""
    update_time: MicroTime = MicroTime(0.0)


@dataclass(frozen=True, slots=True)
class CheckpointView:
    step: int | None = None
    path: str = ""
    time: Time = Time(0.0)


@dataclass(frozen=True, slots=True)
class Startup:
    """Seconds of the first start, from the job's creation; each is absent until known."""

    pods_seconds: float | None = None  # until every worker was made
    joined_seconds: float | None = None  # until the first generation formed
    running_seconds: float | None = None  # until all its processes were started
    first_step_seconds: float | None = None  # until it reported a step


@dataclass(frozen=True, slots=True)
class Incident:
    """One failure that costs budget: a generation that broke, or a worker that ended before it joined one."""

    time: MicroTime = MicroTime(0.0)
    reason: str = ""
    generation: int = 0  # 0: the worker had not joined
    workers: tuple[str, ...] = ()  # UIDs of the workers that it explains, so that none is counted twice
    step: int | None = None  # the highest step reached when it happened


@dataclass(frozen=True, slots=True)
class Restarts:
    process: int = 0
    pod: int = 0
    node: int = 0
    total: int = 0
    generation: int = 0  # the newest generation whose failure is counted, so that a new leader does not count it again
    recent: tuple[Incident, ...] = ()


@dataclass(frozen=True, slots=True)
class LastFailure:
    time: MicroTime = MicroTime(0.0)
    worker: str = ""
    rank: int | None = None
    node: str = ""
    reason: str = ""
    exit_code: int | None = None
    signal: int | None = None
    message: str = ""
    log_tail: str = ""


@dataclass(frozen=True, slots=True)
class GoodputView:
    ratio: str = ""
    productive_seconds: float = 0.0
    lost_seconds: dict[str, float] = field(default_factory=dict)
    mean_recovery_seconds: float | None = None
    recoveries: int = 0
    recomputed_steps: int = 0
    recomputed_samples: int = 0


@dataclass(frozen=True, slots=True)
class HistoryEntry:
    generation: int = 0
    time: MicroTime = MicroTime(0.0)
    size: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """One round; the last one may be running."""

    round: int = 0
    value: str = ""  # of the metric at its end
    changes: str = ""  # against the job as written, in words
    steps: int | None = None
    generation: int = 0  # the one that ended it; 0: it runs. What was reported up to that one is not of the next round
    start_time: Time = Time(0.0)
    completion_time: Time = Time(0.0)


@dataclass(frozen=True, slots=True)
class Best:
    round: int = 0
    value: str = ""
    path: str = ""  # of its model directory, else of its checkpoints, as the workers see it


@dataclass(frozen=True, slots=True)
class EvaluationView:
    """The requirement and how far it is met. Values are text: what is not finite has no number in JSON."""

    metric: str = ""
    target: Exact = Exact(0.0)
    mode: str = "max"
    round: int = 0
    value: str = ""  # last reported in this round
    best: Best | None = None
    met: bool = False
    rounds: tuple[Round, ...] = ()

    @property
    def past(self) -> int:
        """The generation that ended the round before this one; 0: this is the first."""
        return max((entry.generation for entry in self.rounds if entry.round < self.round), default=0)


@dataclass(frozen=True, slots=True)
class Status:
    observed_generation: int = 0
    state: str = ""
    reason: str = ""
    message: str = ""
    manager: str = ""
    conditions: tuple[Condition, ...] = ()
    workers: WorkerCounts = WorkerCounts()
    rendezvous: Rendezvous = Rendezvous()
    progress: ProgressView = ProgressView()
    checkpoint: CheckpointView = CheckpointView()
    startup: Startup = Startup()
    restarts: Restarts = Restarts()
    last_failure: LastFailure | None = None
    goodput: GoodputView = GoodputView()
    evaluation: EvaluationView | None = None
    history: tuple[HistoryEntry, ...] = ()
    start_time: Time = Time(0.0)
    completion_time: Time = Time(0.0)
    selector: str = ""

    def to_json(self) -> Json:
        """The JSON of the status subresource; empty parts are left out."""
        plain = _plain(self)
        plain["conditions"] = [
            {
                "type": c.type,
                "status": "True" if c.status else "False",
                "reason": c.reason,
                "message": c.message,
                "lastTransitionTime": format_time(c.last_transition),
                "observedGeneration": c.observed_generation,
            }
            for c in self.conditions
        ]
        return {key: value for key, value in plain.items() if value not in ({}, [], "", None)}


VIEWS = ("progress", "checkpoint", "startup", "goodput")
"""Parts that are only shown; no decision needs them."""


def read_status(body: Json) -> Status:
    """The typed status of a job's JSON; unknown parts are ignored, absent ones are at their defaults."""
    known = {key: value for key, value in body.items() if key != "conditions"}
    conditions = tuple(
        Condition(
            type=str(c["type"]),
            status=c["status"] == "True",
            reason=str(c.get("reason", "")),
            message=str(c.get("message", "")),
            last_transition=parse_time(c.get("lastTransitionTime", "")),
            observed_generation=int(c.get("observedGeneration", 0)),
        )
        for c in body.get("conditions", ())
    )
    return replace(_typed(Status, known), conditions=conditions)


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _plain(value: Any) -> Json:
    plain: Json = {}
    for name, key, hint in _layout(type(value)):
        item = getattr(value, name)
        if name == "conditions" or item is None or item == "" or item == () or item == {}:
            continue
        if hint in (Time, MicroTime):
            if item:
                plain[key] = format_time(item) if hint is Time else format_micro_time(item)
        elif hint is Exact:
            plain[key] = item
        elif is_dataclass(item):
            nested = _plain(item)
            if nested:
                plain[key] = nested
        elif isinstance(item, tuple):
            plain[key] = [_plain(one) if is_dataclass(one) else one for one in item]
        elif isinstance(item, float):
            plain[key] = round(item, 3)
        elif isinstance(item, dict):
            plain[key] = {cause: round(number, 3) for cause, number in item.items()}
        else:
            plain[key] = item
    return plain


T = TypeVar("T")
_LAYOUTS: dict[type, tuple[tuple[str, str, Any], ...]] = {}


def _layout(kind: type) -> tuple[tuple[str, str, Any], ...]:
    """(attribute, key in the JSON, type) of each field, `X | None` as X: worked out once, for every look reads a status."""
    if kind not in _LAYOUTS:
        hints = typing.get_type_hints(kind)
        _LAYOUTS[kind] = tuple((entry.name, _camel(entry.name), _present(hints[entry.name])) for entry in fields(kind))
    return _LAYOUTS[kind]


def _present(hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _typed(kind: type[T], plain: Json) -> T:
    return kind(**{name: _value(hint, item) for name, key, hint in _layout(kind) if (item := plain.get(key)) is not None})


def _value(hint: Any, item: Any) -> Any:
    if hint in (Time, MicroTime):
        return parse_time(item)
    if is_dataclass(hint):
        return _typed(hint, item)  # type: ignore[arg-type]
    if typing.get_origin(hint) is tuple:
        return tuple(_value(typing.get_args(hint)[0], one) for one in item)
    if hint in (float, Exact):
        return float(item)
    return item
