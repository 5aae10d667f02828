"""The whole model on rank 0, from any layout: sharded tensors are gathered one by one, the stages of a pipeline handed over."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lepton_trainer.train.optim import Average
from lepton_trainer.train.parallel import Engine


@torch.no_grad()
def whole(engine: Engine, average: Average | None, group: dist.ProcessGroup | None) -> dict[str, Tensor]:
    """The model's tensors by name on the CPU of rank 0, the average's where there is one; empty elsewhere. Collective.

    Args:
        group: of all ranks, over gloo; None where there is one rank.
    """
    if average is not None:
        average.swap()
    found: dict[str, Tensor] = {}
    for name, tensor in engine.model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # every rank takes part
        if engine.data_rank == 0:
            found[name] = full.detach().to("cpu", copy=True).contiguous()
    if average is not None:
        average.swap()
    if engine.layout.pipeline > 1 and group is not None:
        rank = dist.get_rank(group)
        stages: list[dict[str, Tensor] | None] = [None] * dist.get_world_size(group)
        dist.gather_object(found, stages if rank == 0 else None, dst=0, group=group)
        found = {name: tensor for stage in stages if stage for name, tensor in stage.items()}
    return found if engine.place.rank == 0 else {}
