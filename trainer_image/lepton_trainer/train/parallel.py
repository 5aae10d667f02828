"""Parallelism, applied to a plain model from outside.

The world is a grid data x tensor, or pipeline x data (see `pipeline.py`). With data parallelism alone the model is wrapped in DDP, or
sharded by FSDP2. Tensor parallelism splits the matrices of a transformer (Shoeybi et al., 2019) and may stand beside either. Whatever
the layout is, `accumulate` leaves the gradient of the mean loss over the global batch, so the optimiser cannot tell.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from lepton_trainer.train.errors import Unfit, UserError
from lepton_trainer.train.models.transformer import Transformer
from lepton_trainer.train.ranks import Place
from lepton_trainer.train.settings.shared import Parallelism

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """How the world is divided: data * tensor * pipeline processes; `sharded` says FSDP instead of DDP."""

    data: int
    tensor: int
    pipeline: int
    sharded: bool


def layout(settings: Parallelism, world: int, parameters: int, memory: int) -> Layout:
    """The layout that the settings ask for, or with `auto` the simplest that fits.

    Args:
        parameters: of the model; with fp32 weights, gradients and two moments each takes 16 bytes.
        memory: bytes of one device; 0 means that it does not matter.
    Raises:
        Unfit: the world cannot be divided so.
    """
    inner = settings.tensor * settings.pipeline
    if world % inner:
        raise Unfit(
            f"tensor {settings.tensor} x pipeline {settings.pipeline} does not divide {world} processes",
            where="parallelism",
            instead=f"Start a multiple of {inner} processes, or lower them",
        )
    data = world // inner
    too_large = memory > 0 and 16 * parameters / inner > 0.6 * memory
    sharded = settings.strategy == "fsdp" or (settings.strategy == "auto" and too_large)
    return Layout(data, settings.tensor, settings.pipeline, sharded and data > 1 and settings.pipeline == 1)


class Engine:
    """A model on its device with the layout applied; hides from the loop how many processes compute a gradient.

    Args:
        loss: outputs, targets -> sum over the batch's units.
        example: inputs of one sample, [1, ...], for passes that must happen although there is nothing to compute.
        autocast: dtype of the forward pass, None for fp32.
    """

    def __init__(
        self, model: nn.Module, chosen: Layout, place: Place, loss: Loss, example: Tensor, autocast: torch.dtype | None, compiled: bool
    ) -> None:
        self.layout, self.place, self.loss = chosen, place, loss
        self.example = example.to(place.device)
        self.autocast = autocast
        self.model = model.to(place.device)
        self.data_rank = place.rank // chosen.tensor
        self.data_group: dist.ProcessGroup | None = None
        self.data_mesh: DeviceMesh | None = None
        self.forward: nn.Module = self.model
        self.replicated = False
        self._divide(compiled)
        self.named = dict(self.model.named_parameters())
        self.buffers = {name: t for name, t in self.model.state_dict().items() if name not in self.named}
        self._moving = [t for t in self.buffers.values() if t.is_floating_point()]
        # DDP and FSDP average over the processes; where this module adds up itself, it sums.
        self._averages = 1 if self.replicated else chosen.data

    def _divide(self, compiled: bool) -> None:
        """Apply the layout to the model."""
        chosen, place = self.layout, self.place
        if chosen.tensor > 1:
            mesh = init_device_mesh(place.device.type, (chosen.data, chosen.tensor), mesh_dim_names=("data", "tensor"))
            self.data_mesh = mesh["data"]
            self.data_group = self.data_mesh.get_group()
            split_tensors(self.model, mesh["tensor"])
        elif chosen.sharded:
            self.data_mesh = init_device_mesh(place.device.type, (chosen.data,), mesh_dim_names=("data",))
        if compiled:
            for block in blocks(self.model):
                block.compile()
        if chosen.sharded:
            policy = (
                MixedPrecisionPolicy(param_dtype=self.autocast, reduce_dtype=torch.float32) if self.autocast else MixedPrecisionPolicy()
            )
            for block in blocks(self.model):
                fully_shard(block, mesh=self.data_mesh, mp_policy=policy)
            fully_shard(self.model, mesh=self.data_mesh, mp_policy=policy)
        elif chosen.data > 1 and chosen.tensor == 1:
            self.forward = DistributedDataParallel(self.model, broadcast_buffers=False, gradient_as_bucket_view=True)
        else:
            self.replicated = chosen.data > 1

    @property
    def leads(self) -> bool:
        """True on one process of those that compute the same samples."""
        return self.place.rank % self.layout.tensor == 0

    def accumulate(self, inputs: Tensor, targets: Tensor, passes: int, most: int, units: float) -> Tensor:
        """Compute this process's share of a global batch and leave the gradient of the mean loss in the parameters.

        Args:
            inputs, targets: [n, ...] on the CPU; n may be 0.
            passes, most: from `order.portions`; every process makes as many passes.
            units: what the global batch's loss is a mean over.
        Returns:
            the sum of the loss over this process's units, fp64, not yet divided or added over processes.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.place.device)
        scale = self._averages / units
        for turn in range(passes):
            x = inputs[turn * most : (turn + 1) * most].to(self.place.device, non_blocking=True)
            y = targets[turn * most : (turn + 1) * most].to(self.place.device, non_blocking=True)
            with self._synchronised(turn == passes - 1):
                if len(x):
                    with self._precision():
                        summed = self.loss(self.forward(x), y)
                    torch.autograd.backward(summed * scale)
                    total += summed.detach()
                else:
                    self._idle()
        return total

    def reduce(self, count: int, total: int) -> None:
        """After the last pass: add up what neither DDP nor FSDP has, and make batch statistics those of the whole batch.

        Args:
            count: samples of this process; total: of the global batch.
        """
        if self.layout.data == 1:
            return
        if self.replicated:
            gradients = [local(p.grad) for p in self.named.values() if p.grad is not None]
            _sum_over(gradients, self.data_group)
        if self._moving:
            for buffer in self._moving:
                buffer.mul_(count / total)
            _sum_over(self._moving, self.data_group)

    def norm(self) -> Tensor:
        """The Euclidean norm of the whole gradient, on every process; a scalar on the device."""
        groups: dict[Any, list[Tensor]] = {}
        for parameter in self.named.values():
            if parameter.grad is not None:
                groups.setdefault(parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None, []).append(parameter.grad)
        parts = []
        for gradients in groups.values():
            part = torch.nn.utils.get_total_norm(gradients)
            parts.append(part.full_tensor() if isinstance(part, DTensor) else part)
        whole: Tensor = torch.linalg.vector_norm(torch.stack(parts))
        return whole

    def clip(self, norm: Tensor, limit: float) -> None:
        """Scale the gradient so that its norm is `limit` at most."""
        factor = torch.clamp(limit / (norm + 1e-6), max=1.0)
        torch._foreach_mul_([local(p.grad) for p in self.named.values() if p.grad is not None], factor)

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor, score: Loss) -> Tensor | None:
        """Sums of `score` over one test batch; None where the batch is empty and the pass was made for the others' sake."""
        if not len(inputs):
            self.forward(self.example)
            return None
        with self._precision():
            outputs = self.forward(inputs.to(self.place.device))
        return score(outputs, targets.to(self.place.device))

    def warm(self) -> None:
        """Two passes that change nothing. DDP orders its buckets anew after the first one: with that behind it before the state is
        loaded, a resumed run adds gradients in the same order as one that was never interrupted, and ends with the same bits.
        """
        if self.layout.data > 1:
            for _ in range(2):
                self._idle()
            for parameter in self.named.values():
                parameter.grad = None

    def add_up(self, values: Tensor) -> Tensor:
        """Sum over the data-parallel processes, in place, on every process."""
        if self.layout.data > 1:
            dist.all_reduce(values, group=self.data_group)
        return values

    def _idle(self) -> None:
        """A forward and backward pass that leaves gradients of zero; in evaluation mode, so that batch statistics stay."""
        self.forward.eval()
        with self._precision():
            outputs = self.forward(self.example)
        torch.autograd.backward(outputs.float().sum() * 0.0)
        self.forward.train()

    @contextlib.contextmanager
    def _synchronised(self, last: bool) -> Iterator[None]:
        """Gradients cross processes in the last pass only."""
        if isinstance(self.forward, DistributedDataParallel) and not last:
            with self.forward.no_sync():
                yield
            return
        if isinstance(self.forward, FSDPModule):
            self.forward.set_requires_gradient_sync(last)
        yield

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.place.device.type, self.autocast)


def refuse_old_torch(chosen: Layout, place: Place) -> None:
    """torch 2.6 has no FSDP2 on CPUs (its CPU stream cannot record events), and its pipeline schedules hang over gloo.

    Raises:
        UserError: the layout needs one of them.
    """
    if place.device.type == "cpu" and (chosen.sharded or chosen.pipeline > 1) and _release() < (2, 7):
        what = f"torch {torch.__version__} can neither shard nor pipe on CPUs"
        raise UserError(what, where="parallelism", instead="Write strategy ddp, or use a newer torch")


def _release() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a model: what is compiled and sharded as one."""
    found = getattr(model, "blocks", None)
    return list(found.values() if isinstance(found, nn.ModuleDict) else found) if found is not None else []


def split_tensors(model: nn.Module, mesh: DeviceMesh) -> None:
    """Split a transformer's matrices over `mesh`: heads and hidden units apart, the sum once per half block.

    Raises:
        UserError: the heads cannot be divided so.
    """
    if not isinstance(model, Transformer):
        raise UserError("this model cannot be split", where="parallelism.tensor", instead="Write 1")
    kv_heads = model.shape.kv_heads
    if kv_heads % mesh.size():
        raise UserError(
            f"{mesh.size()} does not divide the {kv_heads} key-value heads",
            where="parallelism.tensor",
            instead="Lower it or take another preset",
        )
    plan: dict[str, Any] = {"head": ColwiseParallel(output_layouts=Replicate())}
    for name in ("attention.query", "attention.key", "attention.value", "feed.gate", "feed.up"):
        plan[f"blocks.*.{name}"] = ColwiseParallel()
    for name in ("attention.output", "feed.down"):
        plan[f"blocks.*.{name}"] = RowwiseParallel()
    parallelize_module(model, mesh, plan)


def local(tensor: Tensor) -> Tensor:
    """The part of a distributed tensor that this process holds; other tensors as they are."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def _sum_over(tensors: list[Tensor], group: dist.ProcessGroup | None) -> None:
    """Add tensors up over a group in one collective, in place."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat, group=group)
    for tensor, part in zip(tensors, torch.split(flat, [t.numel() for t in tensors]), strict=True):
        tensor.copy_(part.view_as(tensor))
