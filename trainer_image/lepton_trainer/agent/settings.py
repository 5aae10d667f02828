"""What an agent is told by whoever started it: the variables of `protocol.names`, checked once."""

import os
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import List, Mapping, Pattern, Sequence, Tuple

from lepton_trainer.protocol import names, patterns

DEFAULT_TERMINATION_LOG = "/dev/termination-log"


class SettingsError(ValueError):
    """`args[0]` says which variable is wrong, and how."""


@dataclass(frozen=True)
class Settings:
    namespace: str
    job_name: str
    job_uid: str
    worker: int
    worker_uid: str
    worker_name: str
    boot: str
    coordinator: str
    token_file: str
    ca_file: str
    host: str
    procs: int
    grace_seconds: float
    metrics_port: int
    run_dir: Path
    own_run_dir: bool  # we made it, we remove it
    termination_log: str
    warm_start: bool
    preload: Tuple[str, ...]
    log_patterns: List[Tuple[str, Pattern[str]]]
    command: Tuple[str, ...]

    @property
    def job(self) -> str:
        return f"{self.namespace}/{self.job_name}"


def read(env: Mapping[str, str], command: Sequence[str]) -> Settings:
    """Settings from the environment; raises `SettingsError`."""
    if not command:
        raise SettingsError("no command: start the agent as `python -m lepton_trainer.agent -- python train.py`")
    try:
        log_patterns = patterns.load(env.get(names.LOG_PATTERNS, ""))
    except patterns.PatternError as error:
        raise SettingsError(str(error)) from None
    return Settings(
        namespace=env.get(names.NAMESPACE, "default"),
        job_name=_required(env, names.JOB_NAME),
        job_uid=env.get(names.JOB_UID, ""),
        worker=int(_number(env, names.WORKER_INDEX, None)),
        worker_uid=_required(env, names.WORKER_UID),
        worker_name=env.get(names.WORKER_NAME, ""),
        boot=uuid.uuid4().hex,
        coordinator=_required(env, names.COORDINATOR),
        token_file=env.get(names.TOKEN_FILE, ""),
        ca_file=env.get(names.CA_FILE, ""),
        host=env.get(names.HOST) or "127.0.0.1",
        procs=_procs(env),
        grace_seconds=_number(env, names.GRACE_SECONDS, 30),
        metrics_port=int(_number(env, names.METRICS_PORT, names.AGENT_METRICS_PORT)),
        run_dir=_run_dir(env),
        own_run_dir=not env.get(names.RUN_DIR),
        termination_log=_termination_log(env),
        warm_start=env.get(names.WARM_START, "1") != "0",
        preload=tuple(name.strip() for name in env.get(names.PRELOAD, "").split(",") if name.strip()),
        log_patterns=log_patterns,
        command=tuple(command),
    )


def _required(env: Mapping[str, str], name: str) -> str:
    if not env.get(name):
        raise SettingsError(f"{name} is not set: the operator, or `lepton run`, starts the agent with it")
    return env[name]


def _number(env: Mapping[str, str], name: str, default: "float | None") -> float:
    text = env.get(name) or ("" if default is None else str(default))
    try:
        value = float(text)
    except ValueError:
        raise SettingsError(f"{name} is {text!r}: a number was expected") from None
    if not 0 <= value < 1e9:
        raise SettingsError(f"{name} is {text}: out of range")
    return value


def _procs(env: Mapping[str, str]) -> int:
    procs = int(_number(env, names.PROCS, 1))
    if procs < 1:
        raise SettingsError(f"{names.PROCS} is {env[names.PROCS]}: at least 1 is needed")
    return procs


def _run_dir(env: Mapping[str, str]) -> Path:
    """A private folder, in memory where there is such a place: report files are written at every step."""
    named = env.get(names.RUN_DIR)
    if named:
        try:
            Path(named).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SettingsError(f"{names.RUN_DIR} is {named}, which cannot be made a folder ({error.strerror}): name another") from None
        return Path(named)
    for parent in ("/dev/shm", None):
        try:
            return Path(tempfile.mkdtemp(prefix="lepton-", dir=parent))
        except OSError:
            continue
    raise SettingsError(f"no folder for the agent's files is writable: set {names.RUN_DIR} to one")


def _termination_log(env: Mapping[str, str]) -> str:
    named = env.get(names.TERMINATION_LOG)
    if named:
        return named
    return DEFAULT_TERMINATION_LOG if os.access(DEFAULT_TERMINATION_LOG, os.W_OK) else ""
