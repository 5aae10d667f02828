"""The processes of one generation on this worker: their environment, their start, their end. One `Group` is used once.

It kills and reaps; whether an end is a failure, and what follows from it, the supervisor decides.
"""

import asyncio
import errno
import mmap
import os
import socket
import struct
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Set

from lepton_trainer.agent import failures, processes
from lepton_trainer.agent.logs import Output, RankLog
from lepton_trainer.agent.processes import Ended
from lepton_trainer.agent.settings import Settings
from lepton_trainer.agent.warm.client import WarmParent
from lepton_trainer.protocol import names
from lepton_trainer.protocol.messages import Order, ProcessExit
from lepton_trainer.protocol.slot import CALLS, SIZE, SlotReader


@dataclass
class Rank:
    rank: int
    local_rank: int
    slot: SlotReader
    report_file: Path
    error_file: Path
    env: Dict[str, str]
    pid: int = 0
    log: Optional[RankLog] = None
    ended: bool = False
    killed: bool = False  # by us, so that its exit says nothing


@dataclass
class Group:
    order: Order
    settings: Settings
    agent_store: bool  # the store is a process of the master's agent, not part of rank 0
    ranks: List[Rank] = field(default_factory=list)
    exits: List[ProcessExit] = field(default_factory=list)
    terminated: bool = False  # its ranks were asked or forced to end: neither success nor failure
    stop_committed: bool = False

    def prepare(self, base: Mapping[str, str]) -> None:
        """Makes the ranks' files and environments; raises OSError when the run directory is full or gone."""
        for local_rank in range(self.settings.procs):
            rank = self.order.rank_offset + local_rank
            stem = f"{self.order.generation}-{rank}"
            report_file = self.settings.run_dir / f"report-{stem}"
            error_file = self.settings.run_dir / f"error-{stem}.json"
            try:
                with open(report_file, "w+b") as file:
                    os.posix_fallocate(file.fileno(), 0, SIZE)
                    slot = SlotReader(mmap.mmap(file.fileno(), SIZE))
            except OSError:
                report_file.unlink(missing_ok=True)
                raise
            env = rank_environment(base, self.settings, self.order, local_rank, self.agent_store)
            env[names.REPORT_FILE] = str(report_file)
            env["TORCHELASTIC_ERROR_FILE"] = str(error_file)
            self.ranks.append(Rank(rank, local_rank, slot, report_file, error_file, env))

    @property
    def living(self) -> List[Rank]:
        return [rank for rank in self.ranks if rank.pid and not rank.ended]

    @property
    def pids(self) -> "Set[int]":
        return {rank.pid for rank in self.ranks}

    @property
    def all_ended(self) -> bool:
        return all(rank.ended for rank in self.ranks)

    @property
    def stopped(self) -> bool:
        """Whether somebody made its ranks end, so that their ends are no success."""
        return self.stop_committed or self.terminated or any(rank.killed for rank in self.ranks)

    def by_pid(self, pid: int) -> Optional[Rank]:
        return next((rank for rank in self.ranks if rank.pid == pid and not rank.ended), None)

    @property
    def can_stop(self) -> bool:
        return bool(self.ranks) and all(rank.slot.words[CALLS] for rank in self.ranks)

    def attach(self, rank: Rank, pid: int, descriptor: int, output: Output, on_line: Optional[Callable[[str], None]]) -> None:
        """`pid` is the process of `rank`; its output can be read from `descriptor`."""
        rank.pid = pid
        rank.log = RankLog(asyncio.get_running_loop(), descriptor, rank.rank, output, on_line)

    def start_cold(self, rank: Rank, output: Output, on_line: Optional[Callable[[str], None]]) -> None:
        """Executes the job's command as `rank`; raises OSError when that is impossible."""
        reading, writing = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            pid = processes.spawn([*self.settings.command, *self.order.args], rank.env, nothing, writing, writing)
        except OSError:
            os.close(reading)
            raise
        finally:
            os.close(writing)
            os.close(nothing)
        self.attach(rank, pid, reading, output, on_line)

    async def start_warm(self, rank: Rank, warm: WarmParent, output: Output, on_line: Optional[Callable[[str], None]]) -> None:
        """Forks `rank` from the warm parent; raises `Cold`, and OSError when the run directory is full."""
        fifo = log_file(rank)
        os.mkfifo(fifo, 0o600)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        imports = str(self.settings.run_dir / "imports") if rank.local_rank == 0 else ""
        try:
            await warm.fork(rank.env, self.order.args, fifo, imports, lambda pid: self.attach(rank, pid, reading, output, on_line))
        finally:
            if rank.log is None:
                os.close(reading)
                fifo.unlink()

    def signal(self, number: int) -> None:
        processes.send([rank.pid for rank in self.living], number)

    def kill(self) -> None:
        """SIGKILL to every living rank and its process group, at once; the supervisor sees to what descends from them."""
        for rank in self.living:
            rank.killed = True
        pids = [rank.pid for rank in self.ranks if rank.pid]
        processes.send(pids, 9, group=True)

    def finish(self, rank: Rank, exit_code: Optional[int], number: Optional[int], oom: Callable[[], bool]) -> Optional[ProcessExit]:
        """`rank` has ended: reads the last of its output; returns how it failed, or None if it did not, or if we killed it."""
        rank.ended = True
        if rank.log is not None:
            rank.log.drain()
        if rank.killed or exit_code == 0:
            return None
        text = rank.log.text if rank.log is not None else ""
        oom_killed = number == 9 and oom()
        error, traceback, witness = failures.explain(text, exit_code, number, oom_killed, rank.error_file)
        return ProcessExit(
            rank=rank.rank,
            local_rank=rank.local_rank,
            exit_code=exit_code,
            signal=number,
            oom_killed=oom_killed,
            witness=witness,
            error=error,
            traceback=traceback,
            log_tail=failures.log_tail(text),
            time=time.time(),
        )

    def finish_all(self, ended: "List[Ended]", oom: Callable[[], bool]) -> List[ProcessExit]:
        """The failures among `ended`, which may hold other processes than ranks. Inside a collective: last, they are witnesses."""
        failed: List[ProcessExit] = []
        for entry in ended:
            rank = self.by_pid(entry.pid)
            exit_ = self.finish(rank, entry.exit_code, entry.signal, oom) if rank is not None else None
            if exit_ is not None:
                failed.append(exit_)
        return sorted(failed, key=lambda exit_: exit_.witness)

    def close(self) -> None:
        """Nothing of this group lives any more: closes its logs, removes its files."""
        for rank in self.ranks:
            if rank.log is not None:
                rank.log.close()
            for path in (rank.report_file, rank.error_file, log_file(rank)):
                try:
                    path.unlink()
                except FileNotFoundError:
                    continue


def log_file(rank: Rank) -> Path:
    """The named pipe through which a warm rank writes its output: a descriptor would need a socket to travel through."""
    return rank.report_file.with_name(rank.report_file.name + ".log")


def cannot_start(settings: Settings, rank: int, local_rank: int, error: OSError) -> ProcessExit:
    """The exit of a rank whose command could not be executed, with what to do about it."""
    program = settings.command[0]
    if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENOEXEC):
        code, text = 126, f"{program!r} cannot be started: {error.strerror}"
    elif error.errno != errno.ENOENT:
        code, text = (
            126,
            f"{program!r} cannot be executed ({error.strerror}): make it executable, or name its interpreter in trainer.command",
        )
    elif not Path.cwd().is_dir():
        code, text = 127, "the working directory does not exist: correct trainer.workingDir"
    else:
        code, text = 127, f"{program!r} was not found: correct trainer.command, or use an image that has it"
    return ProcessExit(rank=rank, local_rank=local_rank, exit_code=code, error=text, log_tail=text, time=time.time())


def cannot_write(settings: Settings, rank: int, error: OSError) -> ProcessExit:
    """The exit of a rank whose files could not be made."""
    text = f"{settings.run_dir} cannot be written ({error.strerror}): give the pod memory or disk, raise workers.sharedMemory"
    return ProcessExit(rank=rank, local_rank=0, exit_code=126, error=text, log_tail=text, time=time.time())


def no_store(rank: int, why: str) -> ProcessExit:
    """The exit of a master whose generation has no store to meet at."""
    return ProcessExit(rank=rank, local_rank=0, exit_code=1, error=why, log_tail=why, time=time.time())


def rank_environment(base: Mapping[str, str], settings: Settings, order: Order, local_rank: int, agent_store: bool) -> Dict[str, str]:
    """torchrun's variables and Lepton's; of the defaults a value that the user set wins."""
    rank = order.rank_offset + local_rank
    env = {**base, **order.env}
    env.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(order.world_size),
            "LOCAL_WORLD_SIZE": str(settings.procs),
            "GROUP_RANK": str(order.group_rank),
            "GROUP_WORLD_SIZE": str(order.group_size),
            "ROLE_RANK": str(rank),
            "ROLE_WORLD_SIZE": str(order.world_size),
            "ROLE_NAME": "default",
            "MASTER_ADDR": order.master_host,
            "MASTER_PORT": str(order.master_port),
            "TORCHELASTIC_RESTART_COUNT": str(order.restarts),
            "TORCHELASTIC_MAX_RESTARTS": str(order.max_restarts),
            "TORCHELASTIC_RUN_ID": settings.job_uid or settings.job,
            "TORCHELASTIC_USE_AGENT_STORE": str(agent_store),
            names.GENERATION: str(order.generation),
            "LEPTON_JOB_TOTAL_WORKERS": str(order.group_size),
            "LEPTON_JOB_FAILURE_COUNT": str(order.restarts),
        }
    )
    threads = default_threads(settings.procs)
    if threads:
        env.setdefault("OMP_NUM_THREADS", threads)
    env.setdefault("PYTHONUNBUFFERED", "1")
    interface = interface_of(settings.host)
    if interface:
        env.setdefault("GLOO_SOCKET_IFNAME", interface)
    if not processes.is_installed():
        path = env.get("PYTHONPATH")
        env["PYTHONPATH"] = f"{path}:{processes.agent_root()}" if path else processes.agent_root()
    return env


def default_threads(procs: int) -> str:
    """OMP_NUM_THREADS where the user sets none: 1 beside other ranks, as torchrun has it; else the pod's CPU limit, which torch itself
    does not see: it would start a thread for every core of the node. Empty: torch's own choice."""
    quota = processes.cpu_quota()
    if procs > 1:
        return "1"
    return str(max(1, int(quota))) if quota and quota < len(os.sched_getaffinity(0)) else ""


def base_environment(env: Mapping[str, str]) -> Dict[str, str]:
    """What the ranks inherit: everything but what only concerns the agent."""
    private = {names.TOKEN_FILE, names.CA_FILE, names.COORDINATOR, names.LOG_PATTERNS, names.TERMINATION_LOG, *names.TORCHRUN}
    return {name: value for name, value in env.items() if name not in private}


def interface_of(host: str) -> str:
    """The network interface that has the address `host`; empty when it cannot be told.

    Gloo would otherwise ask what the host name resolves to, which is loopback on some nodes and nothing at all on others.
    """
    try:
        import fcntl

        wanted = socket.inet_aton(host)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            for _, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(asking.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
                except OSError:
                    continue
                if answer[20:24] == wanted or (host.startswith("127.") and name == "lo"):
                    return name
    except OSError:
        return ""
    return ""


def free_port() -> int:
    """A port that nobody listens on at this moment; a rank that cannot bind it fails, and a new generation follows."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
