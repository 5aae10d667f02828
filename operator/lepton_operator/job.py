"""A `LeptonTrainingJob` as plain, typed data: read once from the API's JSON, never changed.

The CRD's schema and CEL rules have checked what arrives here; `JobError` is for what they cannot see (an object written before an upgrade,
a rule switched off) and becomes the condition Accepted=False.
"""

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lepton_operator.constants import CONTAINER_TRAINER

AUTO = "auto"
Json = dict[str, Any]


class JobError(ValueError):
    """The job cannot be served; `args[0]` tells the user where it is wrong and what to write instead.

    `stub`, where given, is what is left of the job: who it is and its status, enough to tell the user there.
    """

    def __init__(self, message: str, stub: "Job | None" = None) -> None:
        super().__init__(message)
        self.stub = stub


@dataclass(frozen=True, slots=True)
class LogPattern:
    name: str  # loss, step, samples, tokens, samples_per_second, ...
    pattern: str  # a linear-time regular expression with one group


@dataclass(frozen=True, slots=True)
class Trainer:
    image: str  # empty: the operator's default
    command: tuple[str, ...]
    args: tuple[str, ...] = ()
    env: tuple[Json, ...] = ()
    env_from: tuple[Json, ...] = ()
    working_dir: str = ""
    code_config_map: str = ""
    builtin: str = ""  # JSON of the built-in trainer's task and settings; `command` is that trainer's then


@dataclass(frozen=True, slots=True)
class Workers:
    replicas: int
    min_replicas: int
    procs: int  # per worker, `auto` resolved
    resources: Json = field(default_factory=dict)
    shared_memory: str = ""
    template: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    claim_name: str
    path: str


@dataclass(frozen=True, slots=True)
class Recovery:
    max_restarts: int
    window_seconds: float


@dataclass(frozen=True, slots=True)
class Override:
    """What one further round changes, against the job as it is written: factors for the built-in trainer, args and env for a script."""

    learning_rate: float = 1.0
    epochs: float = 1.0
    width: float = 1.0
    warm_start: bool = False
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The requirement: training goes on, in rounds, until `metric` is at least (mode max) or at most (min) `target`."""

    metric: str
    target: float
    mode: str
    max_rounds: int
    on_miss: tuple[Override, ...] = ()  # empty: the default series


@dataclass(frozen=True, slots=True)
class Serve:
    replicas: int
    port: int
    resources: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Job:
    """`status` is the JSON as observed; `status.Status` reads it."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    created: float
    deleting: bool
    trainer: Trainer
    workers: Workers
    checkpoint: Checkpoint | None
    recovery: Recovery
    from_logs: tuple[LogPattern, ...]
    intra_job_communication: bool
    status: Json
    evaluation: Evaluation | None = None
    serve: Serve | None = None
    exports: bool = False  # the built-in trainer writes a model directory: export, optimise or serve is asked for
    export_path: str = ""  # empty: beside the checkpoints

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def first_round(self) -> str:
        """The directory of its first checkpoints, below the one that spec.checkpoint names."""
        return round_directory(1 if self.evaluation else 0)


BUILTIN_COMMAND = ("python3", "-m", "lepton_trainer", "train")
DEFAULT_MAX_RESTARTS = 10
DEFAULT_WINDOW_SECONDS = 3600.0
DEFAULT_MAX_ROUNDS = 3
DEFAULT_SERVE_PORT = 8080
DEFAULT_SHARED_MEMORY = ""
ACCELERATORS = ("nvidia.com/gpu", "amd.com/gpu")
MIG_PREFIX = "nvidia.com/mig-"


def read_job(body: Json) -> Job:
    """The typed job of an API object (a dict as the API server or a manifest file gives it). Raises `JobError`."""
    meta, spec = body.get("metadata") or {}, body.get("spec") or {}
    trainer, workers = spec.get("trainer") or {}, spec.get("workers") or {}
    delivered = {key: spec[key] for key in ("optimise", "export") if spec.get(key) is not None}
    serve = spec.get("serve")
    if (delivered or serve is not None) and "export" not in delivered:
        delivered["export"] = {}
    builtin = {**trainer["builtin"], **delivered} if trainer.get("builtin") else None
    command = BUILTIN_COMMAND if builtin else tuple(trainer.get("command") or ())
    if not command:
        raise JobError("spec.trainer.command is missing: write the command that starts one rank, e.g. [python, train.py], or builtin")
    replicas = _count(workers.get("replicas", 1), "spec.workers.replicas")
    minimum = _count(workers.get("minReplicas", replicas), "spec.workers.minReplicas")
    if minimum > replicas:
        raise JobError(f"spec.workers.minReplicas is {minimum}, above spec.workers.replicas {replicas}: lower it, or raise replicas")
    checkpoint = spec.get("checkpoint")
    recovery = spec.get("recovery") or {}
    name = str(meta.get("name", ""))
    return Job(
        namespace=str(meta.get("namespace", "default")),
        name=name,
        uid=str(meta.get("uid", "")),
        generation=int(meta.get("generation", 1)),
        resource_version=str(meta.get("resourceVersion", "")),
        created=parse_time(meta.get("creationTimestamp", "")),
        deleting=bool(meta.get("deletionTimestamp")),
        trainer=Trainer(
            image=str(trainer.get("image", "")),
            command=command,
            args=tuple(trainer.get("args") or ()),
            env=tuple(trainer.get("env") or ()),
            env_from=tuple(trainer.get("envFrom") or ()),
            working_dir=str(trainer.get("workingDir", "")),
            code_config_map=str(((trainer.get("code") or {}).get("configMap")) or ""),
            builtin=json.dumps(_whole(builtin), separators=(",", ":")) if builtin else "",
        ),
        workers=Workers(
            replicas=replicas,
            min_replicas=minimum,
            procs=procs_per_worker(workers),
            resources=_resources(workers),
            shared_memory=str(workers.get("sharedMemory", DEFAULT_SHARED_MEMORY)),
            template=workers.get("template") or {},
        ),
        checkpoint=Checkpoint(str(checkpoint.get("claimName", "")), str(checkpoint.get("path") or name)) if checkpoint else None,
        recovery=Recovery(
            max_restarts=int(recovery.get("maxRestarts", DEFAULT_MAX_RESTARTS)),
            window_seconds=parse_duration(str(recovery["window"])) if "window" in recovery else DEFAULT_WINDOW_SECONDS,
        ),
        from_logs=tuple(LogPattern(str(e["name"]), str(e["pattern"])) for e in (spec.get("metrics") or {}).get("fromLogs") or ()),
        intra_job_communication=bool(spec.get("intraJobCommunication", False)),
        status=body.get("status") or {},
        evaluation=_evaluation(spec["evaluation"]) if spec.get("evaluation") else None,
        serve=Serve(int(serve.get("replicas", 1)), int(serve.get("port", DEFAULT_SERVE_PORT)), serve.get("resources") or {})
        if serve is not None
        else None,
        exports=bool(builtin and "export" in builtin),
        export_path=str((delivered.get("export") or {}).get("path", "")),
    )


def _evaluation(given: Json) -> Evaluation:
    overrides = tuple(
        Override(
            learning_rate=float(item.get("learningRate", 1.0)),
            epochs=float(item.get("epochs", 1.0)),
            width=float(item.get("width", 1.0)),
            warm_start=bool(item.get("warmStart", False)),
            args=tuple(item.get("args") or ()),
            env=tuple((str(entry["name"]), str(entry.get("value", ""))) for entry in item.get("env") or ()),
        )
        for item in given.get("onMiss") or ()
    )
    return Evaluation(
        metric=str(given["metric"]),
        target=float(given["target"]),
        mode=str(given.get("mode", "max")),
        max_rounds=_count(given.get("maxRounds", DEFAULT_MAX_ROUNDS), "spec.evaluation.maxRounds"),
        on_miss=overrides,
    )


def round_directory(number: int) -> str:
    """Where the checkpoints of a round lie; those of a job without rounds in that of round 0."""
    return f"round-{number}"


def read_stub(body: Json) -> Job:
    """The identity and status of a job whose spec cannot be read; its spec is empty. For `JobError`."""
    return read_job({"metadata": body.get("metadata"), "status": body.get("status"), "spec": {"trainer": {"command": [""]}}})


def procs_per_worker(workers: Json) -> int:
    """Processes of one worker: as written, else the accelerators that its pod asks for (`auto`), else 1."""
    wanted = workers.get("procsPerWorker", AUTO)
    if wanted != AUTO:
        return _count(int(wanted), "spec.workers.procsPerWorker")
    return max(1, accelerators(_resources(workers)))


def accelerators(resources: Json) -> int:
    """GPUs (whole, or MIG slices) in a container's resources."""
    return sum(int(quantity) for quantity in accelerators_asked(resources).values() if str(quantity).isdecimal())


def accelerators_asked(resources: Json) -> Json:
    """Resource -> quantity, of GPUs alone; a limit goes before a request."""
    asked: Json = {}
    for kind in ("requests", "limits"):
        part = resources.get(kind)
        asked |= part if isinstance(part, dict) else {}  # in a template it may be anything; the API server says so
    return {name: quantity for name, quantity in asked.items() if name in ACCELERATORS or name.startswith(MIG_PREFIX)}


def _resources(workers: Json) -> Json:
    """Of the trainer's container: `resources`, and below it what the pod template gives that container."""
    own: Json = workers.get("resources") or {}
    containers = ((workers.get("template") or {}).get("spec") or {}).get("containers")
    named = [entry for entry in containers if isinstance(entry, dict)] if isinstance(containers, list) else []
    given = next((entry.get("resources") for entry in named if entry.get("name") == CONTAINER_TRAINER), None)
    if not isinstance(given, dict):
        return own
    both = [kind for kind in given if isinstance(given[kind], dict) and isinstance(own.get(kind), dict)]
    return {**given, **own, **{kind: {**given[kind], **own[kind]} for kind in both}}


def _whole(value: Any) -> Any:
    """A float without a fraction is an integer in JSON; Python's own reader makes a difference, and so do the trainer's models."""
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise JobError(f"{where} is {value!r}: write a whole number of at least 1")
    return value


UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str) -> float:
    """Seconds of a duration such as `90s`, `15m`, `1h30m`. Raises `JobError`."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise JobError(f"{text!r} is not a duration: write for example 90s, 15m or 1h30m")
    return sum(float(number) * UNITS[unit] for number, unit in parts)


def parse_time(text: str) -> float:
    """Unix seconds of an RFC 3339 time; 0.0 for an empty one."""
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def format_time(seconds: float) -> str:
    """RFC 3339 with seconds, as metav1.Time is written."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_micro_time(seconds: float) -> str:
    """RFC 3339 with microseconds, as metav1.MicroTime is written."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
