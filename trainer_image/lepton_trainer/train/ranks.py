"""The process group of a run, and the ways its processes agree on a thing."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where this process stands: its rank of `world`, and the device that it computes on."""

    rank: int
    world: int
    device: torch.device


@contextlib.contextmanager
def joined() -> Iterator[Place]:
    """Join the group that torchrun's environment describes, if it does, and leave it at the end."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield Place(0, 1, device)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
    try:
        yield Place(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def side_group() -> dist.ProcessGroup | None:
    """A gloo group of all ranks for words beside the training's own collectives; None where there is one rank. Collective."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup)
    return group


def gather(mine: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """What every rank brought, in the order of ranks."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, mine, group=group)
    return everyone


def from_first(ask: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What rank 0 finds, on every rank; an exception of rank 0 is raised on every rank."""
    if not dist.is_initialized() or dist.get_world_size(group) == 1:
        return ask()
    answer: list[Any] = [None, None]
    if dist.get_rank(group) == 0:
        try:
            answer[0] = ask()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0, group=group)
    if answer[1] is not None:
        raise answer[1]
    found: T = answer[0]
    return found


def together(ask: Callable[[], T], group: dist.ProcessGroup | None = None) -> T:
    """What each rank finds for itself; where one fails, all raise the first one's exception."""
    answer: list[T] = []
    problem: Exception | None = None
    try:
        answer.append(ask())
    except Exception as error:
        problem = error
    for found in gather(problem, group):
        if found is not None:
            raise found
    return answer[0]
