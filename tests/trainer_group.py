"""Groups of training processes for tests: real ranks over gloo, forked from one clean process that has imported torch.

The fork server is asked for by name, because the test process itself has run tensors, and a child forked from it would hang in OpenMP.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

PATIENCE = float(os.environ.get("LEPTON_TEST_PATIENCE", "240"))
"""Seconds for a rank to answer; a machine that does other work may need more."""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    ["lepton_trainer.train.loop", "lepton_trainer.train.tasks.language_modeling", "torch._dynamo", "sklearn.datasets"]
)


class Group:
    """`world` ranks that each run `function(*arguments)`; leave the block and they are gone."""

    def __init__(self, world: int, function: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for rank in range(world):
            mine, theirs = _context.Pipe()
            given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", **(environment or {})}
            given |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
            process = _context.Process(target=_rank, args=(theirs, given, function, arguments), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def results(self) -> list[Any]:
        """What each rank returned, in order; the first exception of a rank is raised here."""
        found: dict[int, Any] = {}
        for rank, pipe in enumerate(self.pipes):
            if not wait([pipe, self.processes[rank].sentinel], PATIENCE):
                raise TimeoutError(f"rank {rank} did not answer in {PATIENCE} s")
            try:
                failed, value = pipe.recv()
            except EOFError:
                raise ChildProcessError(f"rank {rank} ended with {self.processes[rank].exitcode}") from None
            if failed:
                raise value
            found[rank] = value
        return [found[rank] for rank in sorted(found)]


def run(world: int, function: Callable[..., Any], *arguments: Any, environment: dict[str, str] | None = None) -> list[Any]:
    """Run a group to its end and return what each rank returned."""
    with Group(world, function, *arguments, environment=environment) as group:
        return group.results()


def _rank(pipe: Connection, environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  (progress lines of many ranks drown a test's report)
    try:
        pipe.send((False, function(*arguments)))
    except BaseException as error:
        error.add_note(traceback.format_exc())
        pipe.send((True, error))
