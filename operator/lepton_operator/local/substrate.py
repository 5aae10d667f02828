"""The second substrate: the same job, plan, coordinator and agents, workers as processes of one machine.

A worker's record outlives the process that made it, so that a second `lepton run` finds the living and knows how the dead ended.
"""

import asyncio
import logging
import os
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lepton_operator.job import Job, format_time, read_job
from lepton_operator.local import processes
from lepton_operator.local.manifest import Manifest
from lepton_operator.local.outfit import GRACE_SECONDS, agent_directory, at_home, checkpoint_root, outfit
from lepton_operator.local.store import RunDirectory
from lepton_operator.local.validation import ManifestError
from lepton_operator.substrate import Event, Gone, Rejected, Served, Unavailable
from lepton_operator.worker import Phase, Worker
from lepton_trainer.protocol import names
from lepton_trainer.protocol.frames import ProtocolError
from lepton_trainer.protocol.messages import COMPLETE
from lepton_trainer.protocol.result import Result, load

log = logging.getLogger(__name__)

NODE = "local"
SETTLE_SECONDS = 5.0
"""After SIGKILL, the kernel's time to end a process."""
_KUBECTL_LOGS = re.compile(r"kubectl logs -n (\S+) (\S+?)-(\d+)-\w+(?=`)")


class LocalSubstrate:
    """Implements `substrate.Substrate`. `on_change` is called when a worker starts or ends; `on_event` is shown every event."""

    serves = False

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
        return at_home(self._run, read_job(body)) if body is not None else None

    async def write_status(self, job: Job, status: dict[str, Any]) -> None:
        words: dict[str, Any] = _in_local_words(status)

        def change(body: dict[str, Any]) -> None:
            body["status"] = words

        try:
            self._run.update(change, job.resource_version)
        except OSError as error:
            raise Unavailable(f"{error.filename}: {error.strerror}") from None

    async def ensure_service(self, job: Job) -> None:
        """All workers share this machine's loopback: names need no Service."""

    async def served(self, job: Job, directory: str) -> Served:
        return Served()

    async def serve(self, job: Job, directory: str) -> None:
        """`lepton serve` does, when the user asks."""

    async def stop_serving(self, job: Job) -> None:
        """Nothing was made."""

    def checkpoints(self, job: Job) -> str:
        return str(checkpoint_root(self._run, job) or "")

    async def emit(self, job: Job, event: Event) -> None:
        event = replace(event, message=str(_in_local_words(event.message)))
        try:
            with self._run.events_file.open("a") as file:
                file.write(f"{format_time(time.time())} {event.type} {event.reason}: {event.message}\n")
        except OSError as error:
            log.warning("%s: %s", self._run.events_file, error.strerror)
        self._on_event(event)

    # -- workers ------------------------------------------------------------------------------------------------------------------------

    def workers(self, job: Job) -> list[Worker]:
        return list(self._workers.values())

    async def create_worker(self, job: Job, name: str, index: int) -> Worker:
        if name in self._workers:
            return self._workers[name]
        uid = str(uuid.uuid4())
        try:
            given = outfit(self._run, self._manifest, job, name, uid, index)
        except ManifestError as error:
            raise Rejected("InvalidManifest", str(error)) from None
        try:
            with self._run.log_file(name).open("ab") as output:
                child = subprocess.Popen(  # noqa: ASYNC220  (a spawn takes a millisecond, and only this file is waited for)
                    given.command,
                    env=given.env,
                    cwd=given.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
        except OSError as error:
            raise Rejected("WorkerNotStarted", f"{error.filename}: {error.strerror}") from None
        identity = processes.identify(child.pid) or processes.Identity(child.pid, 0)
        child.returncode = 0  # the Watch waits for it, and Popen must not
        now = time.time()
        worker = Worker(name, uid, index, Phase.RUNNING, "1", now, node=NODE, started=now)
        self._adopt(worker, identity)
        try:
            self._run.write_record(name, {"uid": uid, "index": index, "pid": identity.pid, "start": identity.started, "created": now})
        except OSError as error:  # nobody would find it again
            await self.delete_worker(job, worker, 0)
            raise Rejected("WorkerNotStarted", f"{error.filename}: {error.strerror}") from None
        return worker

    async def delete_worker(self, job: Job, worker: Worker, grace_seconds: float | None) -> None:
        identity = self._processes.get(worker.name)
        if identity is None:
            if self._workers.pop(worker.name, None) is None:
                raise Gone(worker.name)
            self._run.drop_record(worker.name)
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
            created = float(record["created"])
            worker = Worker(name, record["uid"], int(record["index"]), Phase.RUNNING, "1", created, node=NODE, started=created)
            if "ended" in record:
                self._workers[name] = _ended(worker, record.get("status"), self._result(name), record["ended"])
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
        processes.remove_tree(agent_directory(worker.uid))
        if worker.deleting:
            del self._workers[name]
            self._run.drop_record(name)
        else:
            try:
                self._run.write_record(name, {**self._run.record(name), "ended": time.time(), "status": status})
            except OSError as error:
                log.warning("how worker %s ended cannot be kept: %s: %s", name, error.filename, error.strerror)
            self._workers[name] = _ended(worker, status, self._result(name), time.time())
        self._ended.set()
        self._on_change()

    def _result(self, name: str) -> str:
        try:
            return self._run.result_file(name).read_text()
        except FileNotFoundError:
            return ""

    def known_children(self) -> set[int]:
        return {identity.pid for identity in self._processes.values()}

    # -- the end of it all --------------------------------------------------------------------------------------------------------------

    def signal_all(self, number: int) -> None:
        """To every agent that lives."""
        for identity in self._processes.values():
            processes.send(identity.pid, number)

    async def all_ended(self, seconds: float) -> bool:
        """Whether every agent has ended within `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while self._processes:
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return False
        return True

    async def kill_all(self) -> None:
        """Nothing that descends from an agent is left afterwards, nor any trace that would be taken for a failure later."""
        self.signal_all(signal.SIGKILL)
        await self.all_ended(SETTLE_SECONDS)
        for worker in self._workers.values():
            processes.sweep(f"{names.WORKER_UID}={worker.uid}")
            processes.remove_tree(agent_directory(worker.uid))
            self._run.drop_record(worker.name)
        self._workers.clear()


def _ended(worker: Worker, status: int | None, result: str, ended: float) -> Worker:
    """How a worker's agent ended: by its wait status where it was our child, else by its own last words."""
    words = _words(result)
    code = os.waitstatus_to_exitcode(status) if status is not None else None
    if code is None and words is not None:
        code = 0 if words.verdict == COMPLETE else 1
    if code is not None and code < 0:
        how = f"its agent was ended by signal {-code} ({_signal_name(-code)})"
    elif code is None:
        how = "its agent is gone, and nobody saw how it ended"
    else:
        how = f"its agent ended with exit code {code}" + (f" ({words.reason})" if words is not None and words.reason else "")
    worker = replace(worker, phase=Phase.SUCCEEDED if code == 0 else Phase.FAILED, result=result, ended=ended, exit_code=code)
    if code == 0:
        return worker
    if words is not None and not words.verdict and words.reason.startswith("SIG"):
        worker = replace(worker, evicted=words.reason.partition(":")[0])  # it was asked to leave, as a node that drains asks
    number = -code if code is not None and code < 0 else None
    return replace(worker, exit_code=None if number else code, signal=number, trouble="PodFailed", trouble_message=how)


def _words(result: str) -> Result | None:
    try:
        return load(result) if result else None
    except ProtocolError:
        return None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _in_local_words(value: Any) -> Any:
    """Sentences made for a cluster, with the command that shows the log on this machine."""
    if isinstance(value, str):
        return _KUBECTL_LOGS.sub(r"lepton logs -n \1 \2 --worker \3", value)
    if isinstance(value, dict):
        return {key: _in_local_words(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_in_local_words(entry) for entry in value]
    return value
