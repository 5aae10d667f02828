"""Clearing is bounded where its caller has no time, and says so where SIGKILL does not help."""

from types import SimpleNamespace
from typing import Any

import pytest

from lepton_trainer.agent import clearing, processes
from lepton_trainer.agent.clearing import Clearing


@pytest.fixture
def undying(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A group with a process that hangs in the kernel; nothing else descends from us."""
    monkeypatch.setattr(processes, "descendants", lambda roots: set())
    return SimpleNamespace(living=["a rank"])


async def test_an_agent_that_ends_does_not_wait_for_a_process_that_cannot_die(undying: Any) -> None:
    assert not await Clearing(None).emptied(undying, lambda: None, seconds=0.05)


async def test_a_process_that_cannot_die_is_named_once(undying: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clearing, "NAMED_SECONDS", 0.0)
    said: list[str] = []
    await Clearing(None).emptied(undying, lambda: said.append("stuck"), seconds=0.2)
    assert said == ["stuck"]
