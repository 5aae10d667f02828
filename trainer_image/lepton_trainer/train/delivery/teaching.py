"""A training in which a model learns from another one's answers as well as from the data (Hinton et al., 2015): for a smaller student, and
to let a pruned model recover. One process, the same engine, optimiser, schedule and order of data as the run's own.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lepton_trainer.train import optim, schedule
from lepton_trainer.train.config import TaskConfig
from lepton_trainer.train.data.feed import Feed
from lepton_trainer.train.data.order import portions
from lepton_trainer.train.parallel import Engine, Layout
from lepton_trainer.train.ranks import Place
from lepton_trainer.train.tasks import Task

TEMPERATURE = 2.0
SOFT = 0.7
"""How much of the loss the teacher's answers are."""


class Taught(nn.Module):
    """A student beside its teacher: inputs -> (the student's outputs, the teacher's)."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def train(self, mode: bool = True) -> Taught:
        """The teacher never learns."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            answers = self.teacher(inputs)
        return self.student(inputs), answers


def teach(student: nn.Module, teacher: nn.Module, task: Task, config: TaskConfig, device: torch.device, part: float, rate: float) -> int:
    """Train `student` in place and leave it in evaluation mode.

    Args:
        part: of the samples that the run itself used.
        rate: factor of the run's learning rates.
    Returns:
        the steps made.
    """
    settings = config.training
    samples = settings.steps * settings.global_batch if settings.steps else settings.epochs * task.size
    end = max(round(samples * part / settings.global_batch), 1) * settings.global_batch
    steps = math.ceil(end / settings.global_batch)
    for parameter in teacher.parameters():
        parameter.requires_grad_(False)
    pair = Taught(student, teacher)

    def loss(outputs: tuple[Tensor, Tensor], targets: Tensor) -> Tensor:
        mine, theirs = outputs
        return (1.0 - SOFT) * task.loss(mine, targets) + SOFT * _difference(mine, theirs)

    example, _ = task.test_batch(0, 1)
    engine = Engine(pair, Layout(1, 1, 1, False), Place(0, 1, device), loss, example, None, False)  # type: ignore[arg-type]
    optimizers = optim.build(config.optimizer, student)
    feed = Feed(task, settings.seed, 0, end, settings.global_batch, 0, 1)
    pair.train()
    try:
        for step, batch in enumerate(feed):
            optim.set_rate(optimizers, rate * schedule.factor(config.schedule, step, steps))
            passes, most = portions(batch.count, settings.micro_batch, 1)
            engine.accumulate(batch.inputs, batch.targets, passes, most, float(batch.count * task.units))
            if config.optimizer.clip_norm:
                engine.clip(engine.norm(), config.optimizer.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    finally:
        feed.close()
    student.eval()
    return steps


def _difference(mine: Tensor, theirs: Tensor) -> Tensor:
    """How far two outputs are apart, summed over all units: as distributions where the last dimension holds classes, else squared."""
    if mine.dim() < 2 or mine.shape[-1] < 2:
        return F.mse_loss(mine.float(), theirs.float(), reduction="sum")
    soft = F.log_softmax(mine.flatten(0, -2).float() / TEMPERATURE, dim=-1)
    wanted = F.log_softmax(theirs.flatten(0, -2).float() / TEMPERATURE, dim=-1)
    return F.kl_div(soft, wanted, reduction="sum", log_target=True) * TEMPERATURE**2
