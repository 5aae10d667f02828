"""Stores of a torch that lacks libuv: Debian's refuses its own default."""

import sys
import types
from typing import Any

import pytest

from lepton_trainer.agent.warm import preload


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
