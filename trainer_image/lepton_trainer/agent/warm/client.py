"""The agent's side of the warm parent: starts it in the background, asks it for ranks and stores, starts another when it went bad."""

import asyncio
import contextlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from lepton_trainer.agent import processes
from lepton_trainer.agent.processes import Ended
from lepton_trainer.agent.settings import Settings
from lepton_trainer.agent.warm import program

READY_SECONDS = 120.0
"""An image's first import of torch may read gigabytes; a cold start would have to as well."""
ANSWER_SECONDS = 10.0
LEARN_SECONDS = 10.0
"""So long after a start the parent imports what the rank has imported by then."""
MAX_PARENTS = 5
FIXED_THREADS = "OPENBLAS_NUM_THREADS"

_BOOT = """import sys
if sys.path and sys.path[0] == "": del sys.path[0]
try: import lepton_trainer.agent.warm
except ImportError: sys.path.append({root!r})
from lepton_trainer.agent.warm.parent import main
main()
"""


class Cold(Exception):
    """This start cannot be warm; `args[0]` says why."""


def warmable(settings: Settings) -> str:
    """Why no start of this job can be warm; empty when it can. Depends on nothing that differs between the workers of a job."""
    if not settings.warm_start:
        return "switched off by LEPTON_WARM_START=0"
    return program.parse(settings.command)[2]


class WarmParent:
    """`pid` is 0 while there is none; `ready_time` is in unix seconds, 0 until it is ready."""

    def __init__(
        self,
        settings: Settings,
        base: Mapping[str, str],
        on_ended: Callable[[List[Ended]], None],
        say: Callable[[str], None],
    ) -> None:
        self.pid = 0
        self.ready_time = 0.0
        self.store_pid = 0
        self._settings = settings
        self._base = dict(base)
        self._on_ended = on_ended
        self._say = say
        self._target, self._flags, _ = program.parse(settings.command)
        self._excluded: Set[str] = set()
        self._parents = 0
        self._why_cold = ""
        self._no_torch = False
        self._number = 0
        self._waiting: "Dict[int, Tuple[asyncio.Future[Dict[str, Any]], Callable[[Dict[str, Any]], None]]]" = {}
        self._late: Set[int] = set()  # requests that nobody waits for any more, of this parent
        self._ready = asyncio.Event()
        self._requests = self._answers = -1
        self._buffer = b""
        if settings.procs > 1:
            self._base.setdefault("OMP_NUM_THREADS", "1")
        self._base.setdefault("PYTHONUNBUFFERED", "1")

    def start(self) -> None:
        """Starts a parent; it is ready some seconds later."""
        self._parents += 1
        self._ready.clear()
        self._late.clear()
        self._why_cold = ""
        requests, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        try:
            self.pid = self._spawn(requests, answers)
        except Cold as cold:
            self._never(str(cold))
            self._close_pipes()
            return
        finally:
            os.close(requests)
        os.set_blocking(self._answers, False)
        self._buffer = b""
        asyncio.get_running_loop().add_reader(self._answers, self._read)

    def _spawn(self, requests: int, answers: int, store_only: bool = False) -> int:
        """A parent (or a store alone) that reads `requests` and writes `answers`, which is closed here. Raises `Cold`."""
        try:
            return self._execute(requests, answers, store_only)
        finally:
            os.close(answers)

    def _execute(self, requests: int, answers: int, store_only: bool) -> int:
        python = shutil.which(self._settings.command[0], path=self._base.get("PATH"))
        if python is None:
            raise Cold(f"{self._settings.command[0]!r} was not found")
        config = {
            "requests": requests,
            "answers": answers,
            "agent": os.getpid(),
            "target": self._target,
            "modules": list(self._settings.preload),
            "excluded": sorted(self._excluded),
            "store_only": store_only,
            "env": {FIXED_THREADS: self._base.get(FIXED_THREADS)},
        }
        boot = _BOOT.format(root=processes.agent_root())
        argv = [python, *self._flags, "-c", boot, json.dumps(config)]
        nothing = os.open(os.devnull, os.O_RDWR)
        try:
            return processes.spawn(argv, {**self._base, FIXED_THREADS: "1"}, nothing, nothing, nothing, [requests, answers])
        except OSError as error:
            raise Cold(f"{python} cannot be executed ({error.strerror})") from None
        finally:
            os.close(nothing)

    def _never(self, why: str) -> None:
        self._why_cold = why
        self._ready.set()

    @property
    def warming(self) -> bool:
        """Still importing: a start would have to wait."""
        return not self._ready.is_set()

    async def wait_ready(self) -> None:
        """Returns when ranks can be forked; raises `Cold`."""
        try:
            await asyncio.wait_for(self._ready.wait(), READY_SECONDS)
        except asyncio.TimeoutError:
            raise Cold(f"the warm parent was not ready within {READY_SECONDS:g} s") from None
        if self._why_cold:
            raise Cold(self._why_cold)

    async def open_store(self) -> int:
        """A store in a process of its own for one generation; its port, or 0 where no torch can be imported. Raises `Cold`."""
        try:
            await self.wait_ready()
            answer = await self._ask({"op": "store"}, lambda _: None)
        except Cold:
            if self._no_torch:
                return 0
            answer = await self._cold_store()
        self.store_pid = int(answer["pid"])
        return int(answer["port"])

    async def _cold_store(self) -> Dict[str, Any]:
        """The ranks of every worker expect a store in a process of its own, so there is one even where the parent cannot be forked."""
        answers_read, answers = os.pipe()
        os.set_blocking(answers_read, False)
        pid, why = 0, f"nothing was heard of it for {READY_SECONDS:g} s"
        try:
            pid = self._spawn(answers, answers, store_only=True)
            deadline = time.monotonic() + READY_SECONDS
            while time.monotonic() < deadline:
                try:
                    line = os.read(answers_read, 4096)
                except BlockingIOError:
                    await asyncio.sleep(0.01)
                    continue
                answer = json.loads(line) if line else {}
                if "port" in answer:
                    store, pid = pid, 0
                    return {"pid": store, "port": answer["port"]}
                why = str(answer.get("why", "its process ended"))
                break
            raise Cold(f"no store could be started: {why}")
        finally:
            os.close(answers_read)
            if pid:
                processes.send([pid], 9)

    def _forget_store(self, pid: int) -> None:
        """It has ended: its number may soon be another's, which is not ours to kill."""
        if pid == self.store_pid:
            self.store_pid = 0

    def close_store(self) -> None:
        if self.store_pid:
            processes.send([self.store_pid], 9)
            self.store_pid = 0

    async def fork(self, env: Mapping[str, str], args: Sequence[str], fifo: Path, imports: str, on_forked: Callable[[int], None]) -> None:
        """A rank with the environment `env` and further arguments that writes its output to `fifo`; `on_forked` hears its pid first.

        Raises `Cold`.
        """
        changes: Dict[str, Optional[str]] = {name: value for name, value in env.items() if self._base.get(name) != value}
        changes.update({name: None for name in self._base if name not in env})
        request = {"op": "fork", "env": changes, "args": list(args), "log": str(fifo), "imports": imports}
        await self._ask(request, lambda answer: on_forked(int(answer["pid"])))
        if imports:
            asyncio.get_running_loop().call_later(LEARN_SECONDS, self._learn, imports, self.pid)

    def _learn(self, path: str, pid: int) -> None:
        if self.pid == pid and self._ready.is_set() and not self._why_cold and not self._late and os.path.exists(path):
            with contextlib.suppress(Cold):  # it ends just now, and the next one learns from the next start
                self._send({"op": "preload", "file": path})

    async def _ask(self, request: Dict[str, Any], first: Callable[[Dict[str, Any]], None]) -> Dict[str, Any]:
        if self._late:  # what is not read fills the pipe, and then we would wait as it does
            raise Cold("the warm parent still owes an older answer")
        self._number += 1
        number = self._number
        future: "asyncio.Future[Dict[str, Any]]" = asyncio.get_running_loop().create_future()
        self._waiting[number] = (future, first)
        try:
            self._send({**request, "id": number})
            return await asyncio.wait_for(future, ANSWER_SECONDS)
        except asyncio.TimeoutError:
            self._late.add(number)
            raise Cold(f"the warm parent did not answer within {ANSWER_SECONDS:g} s") from None
        finally:
            self._waiting.pop(number, None)

    def _send(self, request: Dict[str, Any]) -> None:
        try:
            os.write(self._requests, json.dumps(request).encode() + b"\n")
        except OSError:
            raise Cold("the warm parent is gone") from None

    def _read(self) -> None:
        try:
            data = os.read(self._answers, 65536)
        except BlockingIOError:
            return
        if not data:
            asyncio.get_running_loop().remove_reader(self._answers)
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, answer: Dict[str, Any]) -> None:
        if "ended" in answer:
            exit_code, number = processes.split_status(int(answer["status"]))
            self._forget_store(int(answer["ended"]))
            self._on_ended([Ended(int(answer["ended"]), exit_code, number)])
        elif "ready" in answer:
            self.ready_time = time.time()
            self._ready.set()
        elif answer.get("cold", 0) is None:
            self._gone_bad(str(answer["why"]), str(answer["module"]))
        else:
            self._resolve(answer)

    def _resolve(self, answer: Dict[str, Any]) -> None:
        number = int(answer.get("forked") or answer.get("store") or answer.get("cold") or 0)
        self._late.discard(number)
        future, first = self._waiting.pop(number, (None, None))
        if future is None or first is None or future.done():
            # Nobody waits any more: what was made for a generation that is over already.
            if "pid" in answer:
                processes.send([int(answer["pid"])], 9)
        elif "cold" in answer:
            future.set_exception(Cold(str(answer["why"])))
        else:
            first(answer)
            future.set_result(answer)

    def _gone_bad(self, why: str, module: str) -> None:
        """The parent cannot be forked any more. Where a module is at fault another parent does without it."""
        if module:
            self._say(f"warm start: {why} since it imported {module}; starting another without it")
            self._excluded.add(module)
            self._restart()
        else:
            self._say(f"cold starts: {why}")
            self._no_torch = not self.ready_time
            self._never(why)

    def _restart(self) -> None:
        """Another parent in the place of this one, which has no ranks (it was never ready, or it is dead, and they with it)."""
        if self._parents >= MAX_PARENTS:
            self._never(f"{self._parents} warm parents went bad")
        else:
            self.pid = 0
            self._close_pipes()
            self.start()

    def is_end(self, entry: Ended) -> bool:
        """Whether `entry` is our parent's end; if so another is started."""
        self._forget_store(entry.pid)
        if entry.pid != self.pid:
            return False
        self.pid = 0
        self._read()  # its last words, which may have started another already
        for future, _ in self._waiting.values():
            if not future.done():
                future.set_exception(Cold("the warm parent ended"))
        self._waiting.clear()
        self._late.clear()
        if not self.pid and not self._why_cold:
            self._say(f"the warm parent ended ({entry.exit_code if entry.signal is None else processes.signal_name(entry.signal)})")
            self._restart()
        return True

    def _close_pipes(self) -> None:
        if self._answers >= 0:
            asyncio.get_running_loop().remove_reader(self._answers)
            os.close(self._answers)
        if self._requests >= 0:
            os.close(self._requests)
        self._requests = self._answers = -1

    def close(self) -> None:
        if self.pid:
            processes.send([self.pid], 9)
            self.pid = 0  # its end is nobody's concern any more
        self._close_pipes()
