"""What is learnt: each task turns its configuration into data, a model, a loss and figures of merit.

A task knows nothing of processes, optimisers or checkpoints: it answers for samples by their (epoch, index), and gives sums that the
loop may add up over any split of the work.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from lepton_trainer.train.config import TaskConfig
from lepton_trainer.train.data.order import Int64s
from lepton_trainer.train.settings.image_classification import ImageClassification
from lepton_trainer.train.settings.language_modeling import LanguageModeling
from lepton_trainer.train.settings.recommendation import Recommendation
from lepton_trainer.train.settings.tabular_classification import TabularClassification
from lepton_trainer.train.settings.text_classification import TextClassification


class Task(Protocol):
    """One task with its data ready. All batches are CPU tensors whose first dimension is the sample."""

    size: int
    """Training samples."""
    test_size: int
    """Held-out samples."""
    units: int
    """What one sample counts for in the mean of the loss: 1 image, or its number of tokens."""
    tokens: int
    """Tokens of one sample; 0 where the word means nothing."""
    flops: float
    """Floating-point operations of training on one sample; 0 where unknown."""
    metric: str
    """The figure of merit by which evaluations are compared."""
    mode: Literal["max", "min"]
    sums: int
    """How many sums `score` gives."""
    identity: dict[str, Any]
    """What a checkpoint must agree with: model, classes, data. JSON."""
    description: dict[str, Any]
    """The model as `models.build` takes it. JSON."""
    preprocessing: dict[str, Any]
    """The encoder of the task's data as its `Encoder.from_json` takes it: all that a prediction needs beside the model. JSON."""
    notes: list[str]
    """What the user should know about the data, a sentence each."""

    def model(self) -> nn.Module: ...
    def batch(self, epochs: Int64s, indices: Int64s) -> tuple[Tensor, Tensor]:
        """Inputs and targets of training samples, augmented."""

    def test_batch(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the held-out samples [first, last)."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss summed over all units of the batch, a scalar in fp32."""

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Sums over a test batch, fp64 [sums], that `metrics` turns into figures."""

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Figures of merit from the sums of `score` over the whole held-out split."""


_ROOMS: dict[type[TaskConfig], str] = {
    ImageClassification: "image_classification.ImageClassificationTask",
    LanguageModeling: "language_modeling.LanguageModelingTask",
    TabularClassification: "tabular_classification.TabularClassificationTask",
    Recommendation: "recommendation.RecommendationTask",
    TextClassification: "text_classification.TextClassificationTask",
}


def build(config: TaskConfig) -> Task:
    """The task of a configuration, its data loaded or prepared; its room is imported only now.

    Raises:
        UserError: the data is missing or unusable.
    """
    room, name = _ROOMS[type(config)].split(".")
    task: Task = getattr(import_module(f"lepton_trainer.train.tasks.{room}"), name)(config)
    return task
