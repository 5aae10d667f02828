"""The warm parent: a process that has imported torch already and forks the ranks, so that a generation starts in milliseconds.

It talks to its agent over two pipes, a JSON object a line: requests in, answers out (each shorter than PIPE_BUF, because the store's
process writes to the same pipe). It runs no tensor work, has one thread, no socket and no GPU descriptor: a child of another may hang.

requests  {"op": "fork", "id", "env": {name: value or null}, "args": [...], "log": fifo, "imports": file or ""}
          {"op": "store", "id"}  {"op": "preload", "file"}
answers   {"ready": true}  {"forked": id, "pid"}  {"store": id, "pid", "port"}  {"ended": pid, "status"}
          {"cold": id, "why"}: this request;  {"cold": null, "why", "module"}: any request, because of the module if there is one
"""

import gc
import json
import os
import select
import signal
import sys
import traceback
from typing import Any, Dict, List, Optional, Tuple

from lepton_trainer.agent.processes import die_with_parent, prefer_for_oom
from lepton_trainer.agent.warm import preload, program

GPU_FILES = ("/dev/nvidia", "/dev/kfd", "/dev/dri")


class Parent:
    def __init__(self, config: Dict[str, Any]) -> None:
        """`config`: requests and answers (descriptors), agent (pid), target, modules, excluded, env (what we were started with instead)."""
        self._requests: int = config["requests"]
        self._answers: int = config["answers"]
        self._config = config
        self._env = dict(os.environ)
        for name, value in config["env"].items():
            self._env.pop(name, None)
            if value is not None:
                self._env[name] = value
        self._excluded = set(config["excluded"])
        self._probing: Optional[Tuple[int, int]] = None

    def answer(self, **fields: Any) -> None:
        os.write(self._answers, json.dumps(fields).encode() + b"\n")

    def run(self) -> None:
        """Until the agent closes the pipe, or is dead."""
        die_with_parent(self._config["agent"])
        waking, wake = os.pipe()
        os.set_blocking(wake, False)
        os.set_blocking(waking, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            preload.import_torch()
            preload.tolerate_missing_libuv()
        except Exception as error:
            self.answer(
                cold=None, why=f"torch cannot be imported by {sys.executable} ({type(error).__name__}: {str(error)[:300]})", module=""
            )
            return
        if self._config["store_only"]:
            serve_store(0, self._answers, self._requests)
        for module in [*preload.imported_by(self._config["target"]), *self._config["modules"]]:
            if module not in self._excluded and preload.import_quietly(module) and unfit():
                self.answer(cold=None, why=unfit(), module=module)
                return
        _freeze()
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self.answer(ready=True)
        buffer = b""
        while True:
            self._reap()
            readable, _, _ = select.select([self._requests, waking], [], [])
            if waking in readable:
                os.read(waking, 512)
            if self._requests in readable:
                data = os.read(self._requests, 65536)
                if not data:
                    return
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self._serve(json.loads(line))

    def _serve(self, request: Dict[str, Any]) -> None:
        if request["op"] == "preload":
            self._probe(preload.read(request["file"]))
            return
        why = unfit() or (program.hidden_by(self._config["target"]) if request["op"] == "fork" else "")
        if why:
            self.answer(cold=request["id"], why=why)
            return
        pid = self._fork()
        if pid == 0:
            try:
                if request["op"] == "store":
                    serve_store(request["id"], self._answers, self._requests)
                become_rank(request, self._env, self._config["target"])
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(1)
        if request["op"] == "fork":
            self.answer(forked=request["id"], pid=pid)

    def _fork(self) -> int:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            os.setsid()
            die_with_parent(parent)
        return pid

    def _probe(self, modules: List[str]) -> None:
        """Imports what ranks have imported, but first in a child: this process may have living ranks, and must stay fit to fork."""
        fresh = [module for module in modules if module not in sys.modules and module not in self._excluded]
        if not fresh or self._probing:
            return
        reading, writing = os.pipe()
        pid = self._fork()
        if pid == 0:
            good: List[str] = []
            try:
                for module in fresh:
                    if preload.import_quietly(module):
                        if unfit():
                            break
                        good.append(module)
                os.write(writing, " ".join(good).encode()[:60000])
            finally:
                os._exit(0)
        os.close(writing)
        self._probing = (pid, reading)

    def _learn(self, reading: int) -> None:
        modules = os.read(reading, 65536).decode().split()
        os.close(reading)
        for module in modules:
            preload.import_quietly(module)
        _freeze()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._probing and pid == self._probing[0]:
                reading, self._probing = self._probing[1], None
                self._learn(reading)
            else:
                self.answer(ended=pid, status=status)


def _freeze() -> None:
    """What is loaded is not garbage: left out of collections, its pages stay shared with the ranks."""
    gc.collect()
    gc.freeze()


def unfit() -> str:
    """Why a fork of this process would not be a clean start; empty when it would."""
    tasks = os.listdir("/proc/self/task")
    if len(tasks) != 1:
        return f"the warm parent has {len(tasks)} threads"
    for entry in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
        if target.startswith("socket:"):
            return "the warm parent has an open socket"
        if target.startswith(GPU_FILES):
            return f"the warm parent has opened {target}"
    return ""


def become_rank(request: Dict[str, Any], env: Dict[str, str], target: Dict[str, Any]) -> None:
    """In the child: takes on the environment and the output of a rank, then is the script. Does not return."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    for entry in os.listdir("/proc/self/fd"):
        if int(entry) > 2:
            try:
                os.close(int(entry))
            except OSError:
                continue
    env = dict(env)
    for name, value in request["env"].items():
        env.pop(name, None)
        if value is not None:
            env[name] = value
    os.environ.clear()
    os.environ.update(env)
    prefer_for_oom()
    preload.individualise()
    if request["imports"]:
        preload.record(request["imports"])
    further = request["args"]
    program.run({**target, "args": [*target["args"], *further], "command": [*target["command"], *further]})


def serve_store(number: int, answers: int, requests: int) -> None:
    """In the child: the rendezvous store of one generation, until it is killed. Does not return."""
    if requests != answers:  # a store that is started alone has only one
        os.close(requests)
    try:
        rendezvous: Any = sys.modules["torch.distributed.rendezvous"]
        store = rendezvous.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
        os.write(answers, json.dumps({"store": number, "pid": os.getpid(), "port": store.port}).encode() + b"\n")
    except Exception as error:
        os.write(answers, json.dumps({"cold": number, "why": f"no store: {str(error)[:300]}"}).encode() + b"\n")
        os._exit(1)
    os.close(answers)
    while True:
        signal.pause()


def main(argument: Optional[str] = None) -> None:
    Parent(json.loads(argument or sys.argv[1])).run()
