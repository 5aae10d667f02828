"""Pipeline parallelism: a transformer's blocks in stages, one per process, samples passing through in micro-batches.

The world is a grid pipeline x data; each stage's replicas add their gradients up once per step. The stages keep the names that their
parameters have in the whole model, so checkpoints are the same as any other layout's.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from lepton_trainer.train.errors import Unfit, UserError
from lepton_trainer.train.models.transformer import Transformer
from lepton_trainer.train.parallel import Engine, Layout, Loss, blocks
from lepton_trainer.train.ranks import Place
from lepton_trainer.train.settings.shared import Training


class PipelineEngine(Engine):
    """An engine whose model is this process's stage. Every global batch must have the same number of samples."""

    def __init__(
        self, model: nn.Module, chosen: Layout, place: Place, loss: Loss, example: Tensor, autocast: torch.dtype | None, compiled: bool
    ) -> None:
        if not isinstance(model, Transformer):
            raise UserError("this model cannot be cut into stages", where="parallelism.pipeline", instead="Write 1")
        if model.shape.layers < chosen.pipeline:
            raise UserError(
                f"{model.shape.layers} blocks cannot be cut into {chosen.pipeline} stages", where="parallelism.pipeline", instead="Lower it"
            )
        self.stage = place.rank // chosen.data
        self.first, self.last = self.stage == 0, self.stage == chosen.pipeline - 1
        self.width = model.shape.width
        keep_stage(model, self.stage, chosen.pipeline)
        super().__init__(model, chosen, place, loss, example, autocast, compiled)
        self._schedules: dict[int, Any] = {}
        self._scale = 1.0

    def _divide(self, compiled: bool) -> None:
        mesh = init_device_mesh(self.place.device.type, (self.layout.pipeline, self.layout.data), mesh_dim_names=("pipeline", "data"))
        self.pipe_group, self.data_group = mesh["pipeline"].get_group(), mesh["data"].get_group()
        self.data_rank = self.place.rank % self.layout.data
        self.replicated = True
        if compiled:
            for block in blocks(self.model):
                block.compile()

    @property
    def leads(self) -> bool:
        return self.first

    def accumulate(self, inputs: Tensor, targets: Tensor, passes: int, most: int, units: float) -> Tensor:
        self._scale = 1.0 / units
        losses: list[Tensor] = []  # gathered by the schedule: it also calls the loss on made-up data, to learn shapes
        schedule = self._schedule(passes)
        with self._precision():
            if self.first:
                schedule.step(inputs.to(self.place.device, non_blocking=True))
            elif self.last:
                schedule.step(target=targets.to(self.place.device, non_blocking=True), losses=losses)
            else:
                schedule.step()
        total = torch.zeros((), dtype=torch.float64, device=self.place.device)
        return total + torch.stack(losses).detach().double().sum() * units if losses else total

    def _schedule(self, passes: int) -> Any:
        if passes not in self._schedules:
            stage = PipelineStage(self.model, self.stage, self.layout.pipeline, self.place.device, group=self.pipe_group)
            kind = Schedule1F1B if passes >= self.layout.pipeline else ScheduleGPipe
            unscaled: dict[str, Any] = {"scale_grads": False} if "scale_grads" in inspect.signature(kind.__init__).parameters else {}
            self._schedules[passes] = kind(stage, passes, loss_fn=self._scaled_loss, **unscaled)
        return self._schedules[passes]

    def _scaled_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self.loss(outputs, targets) * self._scale

    def norm(self) -> Tensor:
        square = super().norm().square()
        dist.all_reduce(square, group=self.pipe_group)
        return square.sqrt()

    @torch.no_grad()
    def evaluate(self, inputs: Tensor, targets: Tensor, score: Loss) -> Tensor | None:
        if not len(inputs):
            return None
        peers = dist.get_process_group_ranks(self.pipe_group)
        if self.first:
            x = inputs.to(self.place.device)
        else:
            x = torch.empty(len(inputs), inputs.shape[1], self.width, device=self.place.device)
            dist.recv(x, peers[self.stage - 1], group=self.pipe_group)
        with self._precision():
            outputs = self.model(x)
        if self.last:
            return score(outputs, targets.to(self.place.device))
        dist.send(outputs.float().contiguous(), peers[self.stage + 1], group=self.pipe_group)
        return None

    def warm(self) -> None:
        """Nothing here orders its collectives anew after the first step."""

    def add_up(self, values: Tensor) -> Tensor:
        """Over all processes: only the last stages bring something."""
        dist.all_reduce(values)
        return values


def keep_stage(model: Transformer, stage: int, stages: int) -> None:
    """Remove from a transformer what the other stages have; the blocks are divided evenly, the first stages take what is left over."""
    names = list(model.blocks)
    share, extra = divmod(len(names), stages)
    first = stage * share + min(stage, extra)
    mine = names[first : first + share + (stage < extra)]
    for name in names:
        if name not in mine:
            del model.blocks[name]
    if stage > 0:
        model.embedding = None
    if stage < stages - 1:
        model.norm, model.head = None, None


def micro_batch(settings: Training, chosen: Layout) -> int:
    """Samples of a micro-batch: as the settings say, else as small as makes at most two micro-batches per stage.

    Raises:
        Unfit: the global batch cannot be split into equal micro-batches.
    """
    if settings.global_batch % chosen.data:
        raise Unfit(
            f"globalBatch {settings.global_batch} cannot be split evenly over {chosen.data} pipelines",
            where="training",
            instead=f"Write a multiple of {chosen.data}",
        )
    share = settings.global_batch // chosen.data
    if settings.micro_batch and share % settings.micro_batch:
        raise Unfit(
            f"microBatch {settings.micro_batch} does not divide the {share} samples of each pipeline",
            where="training",
            instead="With pipeline all micro-batches are equal",
        )
    count = next(n for n in range(2 * chosen.pipeline, 0, -1) if share % n == 0)
    return settings.micro_batch or share // count
