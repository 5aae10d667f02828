"""Stores that cannot be had as they should: of a torch that lacks libuv (Debian's refuses its own default), and none at all."""

import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from builders.torch_double import NO_STORE, make_torch
from lepton_trainer.agent.warm import preload
from lepton_trainer.protocol import messages as m
from local.agent.coordinator_double import SOURCE, agents, coordinator


def rendezvous_of(monkeypatch: pytest.MonkeyPatch, create: Any) -> Any:
    module: Any = types.ModuleType("torch.distributed.rendezvous")
    module.TCPStore = create
    monkeypatch.setitem(sys.modules, "torch.distributed.rendezvous", module)
    preload.tolerate_missing_libuv()
    return module


def test_a_torch_without_libuv_gets_the_other_store(monkeypatch: pytest.MonkeyPatch) -> None:
    def create(host: str, *, port: int, use_libuv: bool = True) -> tuple[str, int, bool]:
        if use_libuv:
            raise RuntimeError("use_libuv was requested but PyTorch was build without libuv support")
        return host, port, use_libuv

    module = rendezvous_of(monkeypatch, create)
    assert module.TCPStore("a", port=1) == module.TCPStore("a", port=1, use_libuv=True) == ("a", 1, False)


def test_a_torch_with_libuv_is_asked_once_and_other_errors_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def create(**options: Any) -> None:
        asked.append(options)
        raise RuntimeError("address in use")

    module = rendezvous_of(monkeypatch, create)
    with pytest.raises(RuntimeError, match="address in use"):
        module.TCPStore(port=1)
    assert asked == [{"port": 1}]


async def test_a_generation_whose_store_cannot_be_opened_fails_with_the_reason_instead_of_waiting_for_it(tmp_path: Path) -> None:
    (tmp_path / "double").mkdir()
    make_torch(tmp_path / "double", NO_STORE)
    (tmp_path / "train.py").write_text("")
    path = f"{tmp_path / 'double'}{os.pathsep}{SOURCE}"
    command = [sys.executable, "train.py"]
    async with coordinator() as it, agents(tmp_path, it, command, LEPTON_WARM_START="1", PYTHONPATH=path) as _:
        it.order(0, **it.members(1, [0])[0])
        await it.until_phase(m.FAILED, 0, generation=1)
        (exit_,) = it.peers[0].state.exits
        assert exit_.exit_code == 1 and "no store could be started" in exit_.error and "no port is left" in exit_.error
        it.order(0, **it.members(2, [0])[0])
        await it.until_phase(m.FAILED, 0, generation=2)
