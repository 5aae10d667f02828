"""The second substrate: the same job, plan, coordinator and agents, workers as processes of one machine.

Claims become directories, ConfigMaps are read from the manifest's file, GPUs are shared out by CUDA_VISIBLE_DEVICES. A worker's record
outlives the process that made it, so that a second `lepton run` finds the living and knows how the dead ended.
"""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lepton_operator.job import Job, accelerators, format_time, read_job
from lepton_operator.local import processes
from lepton_operator.local.manifest import Manifest, environment
from lepton_operator.local.store import RunDirectory
from lepton_operator.local.validation import ManifestError
from lepton_operator.substrate import Event, Gone, Rejected
from lepton_operator.worker import Phase, Worker
from lepton_trainer.protocol import names
from lepton_trainer.protocol.frames import ProtocolError
from lepton_trainer.protocol.messages import COMPLETE
from lepton_trainer.protocol.result import load

log = logging.getLogger(__name__)

NODE = "local"
GRACE_SECONDS = 10.0
"""A local worker's time from SIGTERM to SIGKILL."""
TRAINER_ROOT = Path(names.__file__).parents[2]


class LocalSubstrate:
    """Implements `substrate.Substrate`. `on_change` is called when a worker starts or ends; `on_event` is shown every event."""

    def __init__(self, run: RunDirectory, manifest: Manifest, on_change: Callable[[], None], on_event: Callable[[Event], None]) -> None:
        self._run = run
        self._manifest = manifest
        self._on_change = on_change
        self._on_event = on_event
        self._workers: dict[str, Worker] = {}  # by name
        self._processes: dict[str, processes.Identity] = {}
        self._watches: dict[str, processes.Watch] = {}
        self._timers: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()  # set at each end of a worker

    # -- the job ------------------------------------------------------------------------------------------------------------------------

    def job(self, key: str) -> Job | None:
        body = self._run.read()
        return read_job(body) if body is not None else None

    async def write_status(self, job: Job, status: dict[str, Any]) -> None:
        def change(body: dict[str, Any]) -> None:
            body["status"] = status

        self._run.update(change, job.resource_version)

    async def ensure_service(self, job: Job) -> None:
        """All workers share this machine's loopback: names need no Service."""

    async def emit(self, job: Job, event: Event) -> None:
        with self._run.events_file.open("a") as file:
            file.write(f"{format_time(time.time())} {event.type} {event.reason}: {event.message}\n")
        self._on_event(event)

    # -- workers ------------------------------------------------------------------------------------------------------------------------

    def workers(self, job: Job) -> list[Worker]:
        return list(self._workers.values())

    async def create_worker(self, job: Job, name: str, index: int) -> Worker:
        if name in self._workers:
            return self._workers[name]
        uid = str(uuid.uuid4())
        try:
            env = self._environment(job, name, uid, index)
        except ManifestError as error:
            raise Rejected("InvalidManifest", str(error)) from None
        directory = self._working_directory(job)
        command = [sys.executable, "-P", "-m", "lepton_trainer.agent", "--", *job.trainer.command, *job.trainer.args]
        with (self._run.logs / f"{name}.log").open("ab") as output:
            try:
                child = subprocess.Popen(  # noqa: ASYNC220  (a spawn takes a millisecond, and only this file is waited for)
                    command, env=env, cwd=directory, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
                )
            except OSError as error:
                raise Rejected("WorkerNotStarted", f"{error.strerror}: {directory}") from None
        identity = processes.identify(child.pid) or processes.Identity(child.pid, 0)
        child.returncode = 0  # the Watch waits for it, and Popen must not
        now = time.time()
        worker = Worker(name, uid, index, Phase.RUNNING, "1", now, node=NODE, started=now)
        self._run.write_record(name, {"uid": uid, "index": index, "pid": identity.pid, "start": identity.started, "created": now})
        self._adopt(worker, identity)
        return worker

    async def delete_worker(self, job: Job, worker: Worker, grace_seconds: float | None) -> None:
        identity = self._processes.get(worker.name)
        if identity is None:
            self._run.drop_record(worker.name)
            if self._workers.pop(worker.name, None) is None:
                raise Gone(worker.name)
            return
        self._workers[worker.name] = replace(self._workers[worker.name], deleting=True)
        grace = GRACE_SECONDS if grace_seconds is None else grace_seconds
        processes.send(identity.pid, signal.SIGTERM if grace else signal.SIGKILL)
        task = asyncio.create_task(self._kill_later(identity, grace))
        self._timers.add(task)
        task.add_done_callback(self._timers.discard)

    async def _kill_later(self, identity: processes.Identity, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if identity.alive:
            processes.send(identity.pid, signal.SIGKILL)

    def find(self) -> int:
        """Takes up the workers that an earlier `lepton run` left; returns how many still live."""
        living = 0
        for name, record in self._run.records().items():
            identity = processes.Identity(int(record["pid"]), int(record["start"]))
            worker = Worker(
                name, record["uid"], int(record["index"]), Phase.RUNNING, "1", record["created"], node=NODE, started=record["created"]
            )
            if "ended" in record:
                status = record.get("status")
                self._workers[name] = _ended(worker, status, self._result(name), record["ended"])
            elif identity.alive:
                living += 1
                self._adopt(worker, identity)
            else:
                self._workers[name] = worker
                self._note_end(name, None)
        return living

    def _adopt(self, worker: Worker, identity: processes.Identity) -> None:
        self._workers[worker.name] = worker
        self._processes[worker.name] = identity
        self._watches[worker.name] = processes.Watch(identity, lambda status: self._note_end(worker.name, status))

    def _note_end(self, name: str, status: int | None) -> None:
        """The agent is gone: whatever descends from it goes too, and the plan is told how it ended."""
        self._processes.pop(name, None)
        self._watches.pop(name, None)
        worker = self._workers[name]
        left = processes.sweep(f"{names.WORKER_UID}={worker.uid}")
        if left:
            log.info("worker %s left %d processes behind: they were ended", name, left)
        processes.remove_tree(_agent_directory(worker.uid))
        if worker.deleting:
            del self._workers[name]
            self._run.drop_record(name)
        else:
            record = self._run.records().get(name, {})
            self._run.write_record(name, {**record, "ended": time.time(), "status": status})
            self._workers[name] = _ended(worker, status, self._result(name), time.time())
        self._ended.set()
        self._on_change()

    def _result(self, name: str) -> str:
        try:
            return (self._run.workers / f"{name}.result").read_text()
        except FileNotFoundError:
            return ""

    def known_children(self) -> set[int]:
        return {identity.pid for identity in self._processes.values()}

    async def end_all(self, seconds: float) -> None:
        """SIGTERM to every agent, and after `seconds` an end to whatever is left."""
        for identity in self._processes.values():
            processes.send(identity.pid, signal.SIGTERM)
        await self._all_ended(seconds)
        for name, identity in list(self._processes.items()):
            processes.send(identity.pid, signal.SIGKILL)
            processes.sweep(f"{names.WORKER_UID}={self._workers[name].uid}")
        await self._all_ended(5.0)

    async def _all_ended(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while self._processes:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return

    # -- what a worker is given -----------------------------------------------------------------------------------------------------------

    def _working_directory(self, job: Job) -> Path:
        if job.trainer.code_config_map:
            return self._code(job.trainer.code_config_map)
        wanted = Path(job.trainer.working_dir or ".")
        return (
            wanted if wanted.is_absolute() and wanted.is_dir() else self._manifest.directory / (wanted if not wanted.is_absolute() else ".")
        )

    def _code(self, name: str) -> Path:
        folder = self._run.code / name
        folder.mkdir(exist_ok=True)
        for file, text in self._manifest.config_maps.get(name, {}).items():
            (folder / file).write_text(text)
        return folder

    def _environment(self, job: Job, name: str, uid: str, index: int) -> dict[str, str]:
        if job.trainer.code_config_map and job.trainer.code_config_map not in self._manifest.config_maps:
            raise ManifestError(f"spec.trainer.code.configMap: ConfigMap {job.trainer.code_config_map!r} is not in the manifest's file")
        user = environment(list(job.trainer.env), list(job.trainer.env_from), self._manifest.config_maps)
        values = {**os.environ, "PYTHONUNBUFFERED": "1", **user}
        values["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{values.get('PATH', os.defpath)}"
        values["PYTHONPATH"] = os.pathsep.join(filter(None, [values.get("PYTHONPATH", ""), str(TRAINER_ROOT)]))
        own = {
            names.NAMESPACE: job.namespace,
            names.JOB_NAME: job.name,
            names.JOB_UID: job.uid,
            names.WORKER_INDEX: str(index),
            names.WORKER_UID: uid,
            names.WORKER_NAME: name,
            names.COORDINATOR: f"file:{self._run.coordinator_file}",
            names.TOKEN_FILE: str(self._run.token_file),
            names.HOST: "127.0.0.1",
            names.PROCS: str(job.workers.procs),
            names.GRACE_SECONDS: str(GRACE_SECONDS),
            names.METRICS_PORT: "0",
            names.RUN_DIR: str(_agent_directory(uid)),
            names.TERMINATION_LOG: str(self._run.workers / f"{name}.result"),
            "LEPTON_WORKER_ID": name,
            "LEPTON_JOB_WORKER_PREFIX": job.name,
            "LEPTON_JOB_SERVICE_PREFIX": job.name,
            "LEPTON_SUBDOMAIN": "",
            "LEPTON_RESOURCE_ACCELERATOR_NUM": str(accelerators(job.workers.resources)),
            "LEPTON_RESOURCE_ACCELERATOR_TYPE": "",
        }
        if job.checkpoint:
            folder = self._run.claims / job.checkpoint.claim_name / job.checkpoint.path / "round-0"
            folder.mkdir(parents=True, exist_ok=True)
            own[names.CHECKPOINT_DIR] = str(folder)
        if job.from_logs:
            own[names.LOG_PATTERNS] = json.dumps([{"name": entry.name, "pattern": entry.pattern} for entry in job.from_logs])
        own |= self._devices(job, index)
        return {**values, **own}

    def _devices(self, job: Job, index: int) -> dict[str, str]:
        """This worker's share of the machine's GPUs, in order of its index; none are named on a machine without."""
        wanted = accelerators(job.workers.resources)
        present = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else []
        present = present or [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]
        if not wanted or not present:
            return {}
        start = index * wanted
        return {"CUDA_VISIBLE_DEVICES": ",".join(present[(start + i) % len(present)] for i in range(wanted))}


def _ended(worker: Worker, status: int | None, result: str, ended: float) -> Worker:
    code = os.waitstatus_to_exitcode(status) if status is not None else None
    if code is None and result:  # not our child: its own last words tell
        try:
            code = 0 if load(result).verdict == COMPLETE else 1
        except ProtocolError:
            code = None
    phase = Phase.SUCCEEDED if code == 0 else Phase.FAILED
    number = -code if code is not None and code < 0 else None
    return replace(
        worker, phase=phase, exit_code=code if code is None or code >= 0 else 128 - code, signal=number, result=result, ended=ended
    )


def _agent_directory(uid: str) -> Path:
    shared = Path("/dev/shm")
    return (shared if os.access(shared, os.W_OK) else Path(tempfile.gettempdir())) / f"lepton-{uid}"
