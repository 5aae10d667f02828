"""A rank forked from the warm parent behaves as the interpreter that it stands for: one table, run warm and cold, compared line by line.

What does not need torch itself runs with a stand-in for it that is imported in no time.
"""

import os
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from lepton_trainer.protocol import messages as m
from local.agent.coordinator_double import SOURCE, Coordinator, agents, coordinator


@dataclass(frozen=True)
class Case:
    """`files` by name; `command` after the interpreter."""

    name: str
    files: dict[str, str]
    command: tuple[str, ...] = ("train.py",)
    torch: bool = False  # the real one is needed


SHOW = """
import os, sys
print("argv", sys.argv)
print("orig_argv", sys.orig_argv[1:])
print("path", sys.path[0])
print("cwd", os.getcwd())
print("file", __file__, __name__, __package__, __spec__ and __spec__.name)
print("stdin", sys.stdin.read() == "")
print("main", sys.modules["__main__"].__dict__ is globals())
print("optimised", sys.flags.optimize, __debug__)
"""

CASES = [
    Case("a_script_with_arguments", {"train.py": SHOW}, ("train.py", "--lr", "0.1", "a b")),
    Case("a_script_in_another_folder", {"code/train.py": SHOW}, ("./code/train.py",)),
    Case("interpreter_flags", {"train.py": SHOW}, ("-O", "-W", "ignore", "train.py")),
    Case("a_module", {"pack/__init__.py": "", "pack/other.py": "VALUE = 7",
                      "pack/train.py": "from .other import VALUE\nprint(VALUE)" + SHOW},
         ("-m", "pack.train", "x")),
    Case("a_package_with_main", {"pack/__init__.py": "", "pack/__main__.py": SHOW}, ("-m", "pack")),
    Case("a_module_that_is_missing", {"x.py": ""}, ("-m", "no_such_module")),
    Case("a_script_that_is_missing", {}, ("nothing.py",)),
    Case("a_syntax_error", {"train.py": "print(1)\ndef f(:\n    pass\n"}),
    Case("an_uncaught_exception", {"train.py": "def f(n):\n    return 1 / n\n\nprint('before')\nf(0)\n"}),
    Case("a_chained_exception", {"train.py": "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('bad') from e\n"}),
    Case("an_exit_code", {"train.py": "import sys\nsys.exit(3)\n"}),
    Case("an_exit_with_words", {"train.py": "import sys\nprint('out')\nsys.exit('no such dataset')\n"}),
    Case("an_exit_code_beyond_a_byte", {"train.py": "raise SystemExit(256 + 7)\n"}),
    Case("a_keyboard_interrupt", {"train.py": "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(5)\n"}),
    Case("a_death_by_signal", {"train.py": "import os\nos.abort()\n"}),
    Case("atexit_and_threads", {"train.py": (
        "import atexit, threading, time\natexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('thread'))).start()\nprint('main')\n")}),
    Case("signal_dispositions", {"train.py": (
        "import signal\nprint(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGTERM),\n"
        "      signal.getsignal(signal.SIGPIPE), signal.getsignal(signal.SIGCHLD), signal.pthread_sigmask(signal.SIG_BLOCK, ()))\n")}),
    Case("environment_and_threads", {"train.py": (
        "import os, torch\n"
        "print([os.environ.get(k) for k in ('RANK', 'WORLD_SIZE', 'OPENBLAS_NUM_THREADS', 'OMP_NUM_THREADS', 'LOCAL_RANK')])\n"
        "print(torch.get_num_threads(), sorted(k for k in os.environ if k.startswith('TORCHELASTIC')))\n"
        "print(torch.nn.functional.conv2d(torch.ones(8, 8, 32, 32), torch.ones(8, 8, 3, 3)).sum().item())\n")}, torch=True),
    Case("loader_workers_by_fork_and_by_spawn", {"train.py": """
        import torch
        from torch.utils.data import DataLoader, Dataset

        class Squares(Dataset):
            def __len__(self):
                return 16

            def __getitem__(self, i):
                return i * i

        if __name__ == "__main__":
            for context in ("fork", "spawn"):
                loader = DataLoader(Squares(), batch_size=4, num_workers=1, multiprocessing_context=context)
                print(context, [batch.tolist() for batch in loader])
        """}, torch=True),
    Case("multiprocessing_by_spawn", {"train.py": """
        import multiprocessing as mp, os, sys

        def work(n):
            return n + 1, __name__, os.path.basename(sys.argv[0])

        if __name__ == "__main__":
            with mp.get_context("spawn").Pool(1) as pool:
                print(pool.map(work, [1, 2]))
        """}),
]  # fmt: skip


def write(folder: Path, case: Case) -> None:
    for name, text in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))


STAND_IN = {
    "torch/__init__.py": """
class default_generator:
    seed = staticmethod(lambda: None)

def set_num_threads(n):
    pass
""",
    "torch/distributed/__init__.py": "from . import rendezvous",
    "torch/distributed/rendezvous.py": """
class TCPStore:
    def __init__(self, host, port, **_):
        self.port = 4242
""",
    "torch/nn/__init__.py": "",
    "torch/nn/parallel.py": "",
    "torch/_dynamo.py": "",
}


def stand_in(tmp_path: Path) -> dict[str, str]:
    """The environment of agents whose torch is not torch."""
    for name, text in STAND_IN.items():
        (tmp_path / "stand-in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stand-in" / name).write_text(text)
    return {"PYTHONPATH": f"{tmp_path / 'stand-in'}:{SOURCE}"}


async def run(tmp_path: Path, it: Coordinator, case: Case, warm: str) -> tuple[str, list[str], str]:
    """(phase, exit, output) of one run of the case."""
    folder = tmp_path / "work"
    folder.mkdir(exist_ok=True)
    write(folder, case)
    run_path = tmp_path / f"warm-{warm}"
    run_path.mkdir()
    command = [sys.executable, *case.command]
    env = {} if case.torch else stand_in(tmp_path)
    async with agents(run_path, it, command, cwd=folder, LEPTON_WARM_START=warm, **env) as (agent,):
        await it.form(1, [0], seconds=60)
        await it.until(lambda: it.peers[0].state.phase in (m.FAILED, m.SUCCEEDED), 60)
        state = it.peers[0].state
        if warm == "1":
            assert not state.cold_start
        exits = [f"{e.exit_code} {e.signal} {e.error}" for e in state.exits]
        it.order(0, generation=1, shutdown=m.COMPLETE)
        await agent.ended()
        return state.phase, exits, comparable(agent.output())


def comparable(output: str) -> str:
    lines = [line for line in output.splitlines() if line.startswith("[rank")]
    return re.sub(r"0x[0-9a-f]+|report-1-0", "", "\n".join(lines))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_warm_is_like_cold(tmp_path: Path, case: Case) -> None:
    async with coordinator() as it:
        cold = await run(tmp_path, it, case, "0")
    async with coordinator() as it:
        warm = await run(tmp_path, it, case, "1")
    assert warm == cold


RESEEDED = """
import random, uuid
import numpy, torch
print("seeds", random.random(), numpy.random.rand(), torch.rand(1).item(), uuid.uuid4(), flush=True)
"""


GIVEN = """
import os, sys
from lepton_trainer.report import report
print("given", sys.argv[1:], os.environ.get("LEPTON_ROUND"), os.environ.get("LR"), os.environ.get("LONG"))
report(step=7, metrics={"accuracy": 0.5})
"""


@pytest.mark.parametrize("warm", ["0", "1"])
async def test_a_round_gives_its_ranks_variables_and_arguments_and_leaves_nothing_of_them_to_the_next(tmp_path: Path, warm: str) -> None:
    (tmp_path / "train.py").write_text(GIVEN)
    command, env = [sys.executable, "train.py", "--fast"], {"LEPTON_WARM_START": warm, "LR": "1", **stand_in(tmp_path)}
    async with coordinator() as it, agents(tmp_path, it, command, **env) as (agent,):
        await it.form(1, [0], seconds=60, round=1, env={"LEPTON_ROUND": "1", "LR": "2"})
        await it.until_phase(m.SUCCEEDED, 0, generation=1)
        assert it.peers[0].state.round == 1 and it.peers[0].progress.metrics == {"accuracy": "0.5"}
        await it.form(2, [0], round=2, env={"LEPTON_ROUND": "2", "LONG": "1"}, args=("--lr", "0.1"))
        await it.until_phase(m.SUCCEEDED, 0, generation=2)
        await it.form(3, [0], round=2, env={"LEPTON_ROUND": "2"})
        await it.until_phase(m.SUCCEEDED, 0, generation=3)
        await it.until(lambda: agent.output().count("given") == 3)
        said = [line.partition("given ")[2] for line in agent.output().splitlines() if "given" in line]
        assert said == ["['--fast'] 1 2 None", "['--fast', '--lr', '0.1'] 2 1 1", "['--fast'] 2 1 None"]
        assert bool(it.peers[0].state.cold_start) == (warm == "0"), it.peers[0].state.cold_start


async def test_ranks_of_one_parent_differ_in_their_random_numbers(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(RESEEDED)
    async with coordinator() as it, agents(tmp_path, it, [sys.executable, "train.py"], procs=2, LEPTON_WARM_START="1") as (agent,):
        await it.form(1, [0], seconds=60)
        await it.until_phase(m.SUCCEEDED, 0)
        seeds = [line.split()[3:] for line in agent.output().splitlines() if " seeds " in line]
        assert len(seeds) == 2 and not set(seeds[0]) & set(seeds[1])


@pytest.mark.parametrize(
    ("command", "files", "why"),
    [
        (["bash", "-c", "exit 0"], {}, "starts 'bash' and not python"),
        ([sys.executable, "-c", "pass"], {}, "option '-c' needs an interpreter of its own"),
        ([sys.executable, "train.py"], {"train.py": "", "traceback.py": ""}, "traceback.py beside the script has the name"),
        ([sys.executable, "train.py"], {"train.py": "import threading_lib", "threading_lib.py": ""}, ""),
    ],
)
async def test_what_cannot_start_warm_starts_cold_and_says_why(tmp_path: Path, command: list[str], files: dict[str, str], why: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    async with coordinator() as it, agents(tmp_path, it, command, LEPTON_WARM_START="1", **stand_in(tmp_path)) as _:
        await it.form(1, [0], seconds=60)
        await it.until_phase(m.SUCCEEDED, 0)
        assert why in it.peers[0].state.cold_start and bool(why) == bool(it.peers[0].state.cold_start)


async def test_a_library_that_starts_a_thread_is_left_to_the_rank(tmp_path: Path) -> None:
    site = tmp_path / "venv"
    (site / "site-packages").mkdir(parents=True)
    (tmp_path / "train.py").write_text("import threaded\nprint('threads', threaded.thread.is_alive())\n")
    (site / "threaded.py").write_text(
        "import threading, time\nthread = threading.Thread(target=time.sleep, args=(60,), daemon=True)\nthread.start()\n"
    )
    boot = (
        "import lepton_trainer.agent.warm.preload as p\n"
        "p._is_library = lambda name, before=p._is_library: name == 'threaded' or before(name)\n"
    )
    (site / "sitecustomize.py").write_text(f"import sys\nsys.path.insert(1, {str(site)!r})\n{boot}")
    env = {"LEPTON_WARM_START": "1", "PYTHONPATH": f"{site}:{stand_in(tmp_path)['PYTHONPATH']}"}
    async with coordinator() as it, agents(tmp_path, it, [sys.executable, "train.py"], **env) as (agent,):
        await it.form(1, [0], seconds=60)
        await it.until_phase(m.SUCCEEDED, 0)
        assert "threads True" in agent.output() and "starting another without it" in agent.output()
        assert not it.peers[0].state.cold_start


async def test_a_dead_warm_parent_costs_its_ranks_and_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import time; time.sleep(60)")
    async with (
        coordinator() as it,
        agents(tmp_path, it, [sys.executable, "train.py"], LEPTON_WARM_START="1", **stand_in(tmp_path)) as (agent,),
    ):
        await it.form(1, [0], seconds=60)
        warm = next(pid for pid, line in agent.processes().items() if "warm.parent" in line and pid not in agent.ranks.values())
        os.kill(warm, 9)
        await it.until_phase(m.FAILED, 0)
        await it.form(2, [0], seconds=60)
        assert it.peers[0].state.phase == m.RUNNING and not it.peers[0].state.cold_start
