"""What a local worker is given, as a pod is by its spec: its command, working directory, variables, and share of the GPUs.

Claims are directories of the run, ConfigMaps come from the manifest's file. Whatever of it cannot be had is said in a sentence
(`ManifestError`) and becomes the job's condition, as an admission error would.
"""

import json
import os
import re
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lepton_operator.job import Job, accelerators
from lepton_operator.local.manifest import Manifest, environment
from lepton_operator.local.store import RunDirectory, replace_file
from lepton_operator.local.validation import ManifestError
from lepton_trainer.protocol import names

GRACE_SECONDS = 10.0
"""A local worker's time from SIGTERM to SIGKILL."""
TRAINER_ROOT = Path(names.__file__).parents[2]
CLAIM_IN_PODS = "/checkpoints"
CONFIG_MAP_KEY = re.compile(r"[-._a-zA-Z0-9]+")


@dataclass(frozen=True, slots=True)
class Outfit:
    command: tuple[str, ...]
    directory: Path
    env: dict[str, str]


def outfit(run: RunDirectory, manifest: Manifest, job: Job, name: str, uid: str, index: int) -> Outfit:
    """Of the worker `name`. Raises `ManifestError`."""
    try:
        checkpoints = checkpoint_directory(run, job)
        if checkpoints is not None:
            checkpoints.mkdir(parents=True, exist_ok=True)
        directory = _directory(run, manifest, job)
    except OSError as error:
        raise ManifestError(f"{error.filename}: {error.strerror}") from None
    user = environment(list(job.trainer.env), list(job.trainer.env_from), manifest.config_maps)
    values = {**os.environ, "PYTHONUNBUFFERED": "1", **user}
    values["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{values.get('PATH', os.defpath)}"
    values["PYTHONPATH"] = os.pathsep.join(filter(None, [values.get("PYTHONPATH", ""), str(TRAINER_ROOT)]))
    values.setdefault("OMP_NUM_THREADS", str(_threads(job)))
    values |= _own(run, job, name, uid, index) | _devices(job, index)
    if checkpoints is not None:
        values[names.CHECKPOINT_DIR] = str(checkpoints)
    command = (sys.executable, "-P", "-m", "lepton_trainer.agent", "--", *job.trainer.command, *job.trainer.args)
    return Outfit(command, directory, values)


def at_home(run: RunDirectory, job: Job) -> Job:
    """`job` with the export path that it names inside its claim where that claim lies on this machine."""
    inside = job.export_path.removeprefix(f"{CLAIM_IN_PODS}/")
    if job.checkpoint is None or inside == job.export_path:
        return job
    path = str(run.claims / job.checkpoint.claim_name / inside)
    document = json.loads(job.trainer.builtin)
    document["export"]["path"] = path
    return replace(job, export_path=path, trainer=replace(job.trainer, builtin=json.dumps(document, separators=(",", ":"))))


def checkpoint_directory(run: RunDirectory, job: Job) -> Path | None:
    """Of its first round."""
    root = checkpoint_root(run, job)
    return root / job.first_round if root is not None else None


def checkpoint_root(run: RunDirectory, job: Job) -> Path | None:
    """The directory that spec.checkpoint names; each round has its own in it."""
    return run.claims / job.checkpoint.claim_name / job.checkpoint.path if job.checkpoint is not None else None


def agent_directory(uid: str) -> Path:
    """The agent's own files, in memory where there is such a place; removed with the worker."""
    shared = Path("/dev/shm")
    return (shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())) / f"lepton-{uid}"


def _directory(run: RunDirectory, manifest: Manifest, job: Job) -> Path:
    """Code from a ConfigMap lies in a folder of its own; else it is `workingDir` where this machine has it, else the manifest's folder."""
    code = job.trainer.code_config_map
    if code:
        return _unpack(run.code / code, manifest, code)
    wanted = Path(job.trainer.working_dir or manifest.directory)
    return wanted if wanted.is_dir() else manifest.directory


def _unpack(folder: Path, manifest: Manifest, name: str) -> Path:
    if name not in manifest.config_maps:
        raise ManifestError(
            f"spec.trainer.code.configMap: ConfigMap {name!r} is not in the manifest's file: add it as a document of its own"
        )
    folder.mkdir(parents=True, exist_ok=True)
    files = manifest.config_maps[name]
    for key, text in files.items():
        if not CONFIG_MAP_KEY.fullmatch(key) or key in (".", ".."):
            raise ManifestError(f"ConfigMap {name!r}: {key!r} is no valid key: letters, digits, '-', '_' and '.' only")
        path = folder / key
        if not path.is_file() or path.read_text() != text:  # ranks of other workers may be reading it
            replace_file(path, text)
    for path in folder.iterdir():
        if path.is_file() and path.name not in files:
            path.unlink()
    return folder


def _own(run: RunDirectory, job: Job, name: str, uid: str, index: int) -> dict[str, str]:
    own = {
        names.NAMESPACE: job.namespace,
        names.JOB_NAME: job.name,
        names.JOB_UID: job.uid,
        names.WORKER_INDEX: str(index),
        names.WORKER_UID: uid,
        names.WORKER_NAME: name,
        names.COORDINATOR: f"file:{run.coordinator_file}",
        names.TOKEN_FILE: str(run.token_file),
        names.HOST: "127.0.0.1",
        names.PROCS: str(job.workers.procs),
        names.GRACE_SECONDS: str(GRACE_SECONDS),
        names.METRICS_PORT: "0",
        names.RUN_DIR: str(agent_directory(uid)),
        names.TERMINATION_LOG: str(run.result_file(name)),
        "LEPTON_WORKER_ID": name,
        "LEPTON_JOB_WORKER_PREFIX": job.name,
        "LEPTON_JOB_SERVICE_PREFIX": job.name,
        "LEPTON_SUBDOMAIN": "",
        "LEPTON_RESOURCE_ACCELERATOR_NUM": str(accelerators(job.workers.resources)),
        "LEPTON_RESOURCE_ACCELERATOR_TYPE": "",
    }
    if job.trainer.builtin:
        own[names.BUILTIN] = job.trainer.builtin
    if job.from_logs:
        patterns: list[dict[str, Any]] = [{"name": entry.name, "pattern": entry.pattern} for entry in job.from_logs]
        own[names.LOG_PATTERNS] = json.dumps(patterns)
    return own


def _threads(job: Job) -> int:
    """Of one rank: workers that share a machine share its cores, and more threads than cores wait for each other."""
    return max(1, len(os.sched_getaffinity(0)) // (job.workers.replicas * job.workers.procs))


def _devices(job: Job, index: int) -> dict[str, str]:
    """This worker's share of the machine's GPUs, in order of its index; none are named on a machine without."""
    wanted = accelerators(job.workers.resources)
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    present = named.split(",") if named else [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
    if not wanted or not present:
        return {}
    start = index * wanted
    return {"CUDA_VISIBLE_DEVICES": ",".join(present[(start + i) % len(present)] for i in range(wanted))}
