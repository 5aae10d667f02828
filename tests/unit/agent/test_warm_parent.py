"""The agent's side of the warm parent where the parent hangs, dies, goes bad or cannot be forked. Its torch is a small double."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from builders.torch_double import NO_STORE, make_torch
from lepton_trainer.agent import processes
from lepton_trainer.agent.settings import read
from lepton_trainer.agent.warm import client, preload
from lepton_trainer.agent.warm.client import Cold, WarmParent
from lepton_trainer.protocol import names

SOURCE = Path(__file__).resolve().parents[3] / "trainer_image"


class Warm(WarmParent):
    """Reaps what it has started, as the supervisor does."""

    def __init__(self, folder: Path, program: str = sys.executable, **env: str) -> None:
        (folder / "train.py").write_text("")
        told = {names.JOB_NAME: "digits", names.WORKER_INDEX: "0", names.WORKER_UID: "u", names.COORDINATOR: "tcp://127.0.0.1:1"}
        settings = read(told | {names.RUN_DIR: str(folder / "run")}, (program, str(folder / "train.py")))
        base = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{folder}{os.pathsep}{SOURCE}"} | env
        self.said: list[str] = []
        self.started: list[int] = []
        super().__init__(settings, base, lambda ended: None, self.said.append)

    def _spawn(self, requests: int, answers: int, store_only: bool = False) -> int:
        self.started.append(super()._spawn(requests, answers, store_only))
        return self.started[-1]

    async def ended(self, pid: int) -> processes.Ended:
        async with asyncio.timeout(10):
            while True:
                found, status = os.waitpid(pid, os.WNOHANG)  # noqa: ASYNC222 - it does not wait
                if found:
                    return processes.Ended(pid, *processes.split_status(status))
                await asyncio.sleep(0.005)


@pytest.fixture
async def warm(tmp_path: Path) -> AsyncIterator[Warm]:
    make_torch(tmp_path)
    it = Warm(tmp_path)
    yield it
    it.close()
    for pid in it.started:
        try:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)  # noqa: ASYNC222 - it has been killed
        except (ProcessLookupError, ChildProcessError):
            continue


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def connects(port: int) -> bool:
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    return True


async def test_a_parent_that_cannot_be_forked_leaves_a_store_that_is_started_alone(warm: Warm) -> None:
    warm._never("the warm parent has 2 threads")
    before = descriptors()
    port = await warm.open_store()
    assert await connects(port)
    assert descriptors() <= before + 1
    assert warm.started == [warm.store_pid]
    warm.close_store()
    assert (await warm.ended(warm.started[0])).signal == signal.SIGKILL


async def test_where_no_store_can_be_had_it_is_said_why(tmp_path: Path) -> None:
    make_torch(tmp_path, NO_STORE)
    warm = Warm(tmp_path)
    warm._never("the warm parent has 2 threads")
    with pytest.raises(Cold, match="no store could be started: no store: no port is left"):
        await warm.open_store()
    await warm.ended(warm.started[0])


async def test_a_store_that_never_answers_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_torch(tmp_path, "import time\n\ndef TCPStore(*_, **__): time.sleep(60)\n")
    warm = Warm(tmp_path)
    warm._never("the warm parent has 2 threads")
    monkeypatch.setattr(client, "READY_SECONDS", 0.2)
    with pytest.raises(Cold, match="nothing was heard of it"):
        await warm.open_store()
    assert (await warm.ended(warm.started[0])).signal == signal.SIGKILL


async def test_a_program_that_is_not_there_costs_no_descriptor(tmp_path: Path) -> None:
    warm = Warm(tmp_path, program="python3", PATH=str(tmp_path))
    before = descriptors()
    warm.start()
    for _ in range(5):
        with pytest.raises(Cold, match="'python3' was not found"):
            await warm.open_store()
    assert descriptors() == before


async def test_a_store_that_has_ended_is_not_killed_by_its_number(warm: Warm) -> None:
    warm.start()
    await warm.open_store()
    store = warm.store_pid
    assert store
    os.kill(store, signal.SIGKILL)
    async with asyncio.timeout(10):
        while warm.store_pid:  # noqa: ASYNC110 - its parent tells
            await asyncio.sleep(0.005)


async def test_a_parent_that_hangs_is_waited_for_once_and_used_again_when_it_answers(warm: Warm, monkeypatch: pytest.MonkeyPatch) -> None:
    warm.start()
    await warm.wait_ready()
    os.kill(warm.pid, signal.SIGSTOP)
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.2)
    with pytest.raises(Cold, match="did not answer"):
        await warm._ask({"op": "store"}, lambda _: None)
    monkeypatch.setattr(client, "ANSWER_SECONDS", 10.0)
    (warm._settings.run_dir / "imports").write_text("json\n" * 100)
    async with asyncio.timeout(5):  # a request for each would fill the pipe, and then stop this process too
        for _ in range(200):
            with pytest.raises(Cold, match="owes an older answer"):
                await warm._ask({"op": "store", "env": "x" * 4000}, lambda _: None)
            warm._learn(str(warm._settings.run_dir / "imports"), warm.pid)
    os.kill(warm.pid, signal.SIGCONT)
    async with asyncio.timeout(10):
        while warm._late:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert (await warm._ask({"op": "store"}, lambda _: None))["port"]
    assert not warm._waiting


async def test_learning_from_a_parent_that_ends_just_now_is_no_error(warm: Warm, tmp_path: Path) -> None:
    warm.start()
    await warm.wait_ready()
    os.kill(warm.pid, signal.SIGKILL)
    await warm.ended(warm.pid)
    (tmp_path / "imports").write_text("json\n")
    warm._learn(str(tmp_path / "imports"), warm.pid)


async def test_a_parent_that_says_why_it_goes_bad_and_ends_is_replaced_once(warm: Warm, tmp_path: Path) -> None:
    """Its end may be known before its last words are read."""
    library = tmp_path / "library"
    library.mkdir()
    (library / "spoiler.py").write_text("import socket\nkept = socket.socket()\n")
    places = f"dict.fromkeys(('stdlib', 'platstdlib', 'purelib', 'platlib'), {str(library)!r})"
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys, sysconfig\nsys.path.append({str(library)!r})\nsysconfig.get_paths = lambda: {places}\n"
    )
    (tmp_path / "train.py").write_text("import spoiler\n")
    warm.start()
    asyncio.get_running_loop().remove_reader(warm._answers)  # as where the loop comes to SIGCHLD first
    ended = await warm.ended(warm.pid)
    assert warm.is_end(ended)
    assert len(warm.started) == 2 and warm.pid == warm.started[1]
    assert "spoiler" in warm.said[0] and len(warm.said) == 1
    await warm.wait_ready()


def test_a_module_that_is_not_there_is_written_down_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "imports", os.O_WRONLY | os.O_CREAT)
    recorder = preload._Recorder(descriptor)
    for step in range(20_000):
        assert recorder.find_spec("apex") is None
        recorder.find_spec(f"made.up_{step}")
    os.close(descriptor)
    lines = (tmp_path / "imports").read_text().splitlines()
    assert lines.count("apex") == 1 and len(lines) == preload.RECORD_LIMIT
