"""Settings of tabular classification."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lepton_trainer.train.settings.section import Section, between
from lepton_trainer.train.settings.shared import (
    UNDIVIDED,
    WHOLE,
    Checkpoint,
    DataParallelism,
    Optimizer,
    Output,
    Schedule,
    Training,
    check_layout,
    check_undivided,
)

_NO_CSV = "data.path is missing: write the csv file, or a directory with train.csv and test.csv"


class TabularData(Section):
    """A table and its classes."""

    model_config = between(("!has(self.source) || self.source != 'csv' || has(self.path) && self.path != ''", _NO_CSV))

    source: Literal["breastCancer", "phishing", "shuttle", "csv"] = Field(
        default="breastCancer", description="breastCancer: scikit-learn's; phishing, shuttle: the package river's; csv: your own."
    )
    path: Annotated[str, Field(max_length=1024)] = Field(
        default="", description="The csv, or a directory with train.csv and test.csv; for phishing and shuttle river's datasets."
    )
    target: Annotated[str, Field(max_length=256)] = Field(
        default="", description="Column of the classes; empty: one called target, label or class, else the last."
    )
    positive: Annotated[str, Field(max_length=256)] = Field(
        default="", description="Of two classes the one to be found; empty: 1, true or yes, else the rarer."
    )
    columns: Annotated[dict[Annotated[str, Field(max_length=256)], Literal["number", "category", "drop"]], Field(max_length=1024)] = Field(
        default={}, description="What columns are, by name, where it is not told rightly from their values."
    )
    encoding: Annotated[str, Field(max_length=32)] = Field(default="utf-8", description="Of the csv.")
    delimiter: Annotated[str, Field(max_length=1)] = Field(default="", description="Of the csv; empty: told from its first rows.")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.2, description="Held out of each class, without a test.csv.")
    split_seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="Decides which rows are held out.")
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = Field(default=0.01, description="More bad rows than this end the run.")
    swap: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Augmentation: this fraction of the cells is taken from another row."
    )


class TabularNetwork(Section):
    """A residual MLP over embeddings of numbers and categories."""

    width: Annotated[int, Field(ge=8, le=8192)] = Field(default=128, description="Hidden units.")
    blocks: Annotated[int, Field(ge=1, le=32)] = Field(default=2, description="Residual blocks.")
    embedding: Annotated[int, Field(ge=1, le=256)] = Field(default=12, description="Size of each column's embedding.")


class Decision(Section):
    """From which probability on a row counts as positive, of two classes."""

    false_alarm: Annotated[float, Field(gt=0, le=1_000_000)] = Field(default=1.0, description="Cost of a false alarm.")
    miss: Annotated[float, Field(gt=0, le=1_000_000)] = Field(default=1.0, description="Cost of a miss.")
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="Of the training rows, to choose the cheapest threshold on; 0: it is falseAlarm / (falseAlarm + miss)."
    )


class TabularTraining(Training):
    """The same for tables, with its own defaults."""

    epochs: Annotated[float, Field(gt=0, le=100_000)] = Field(
        default=20.0, description="Passes over the training data; ignored where steps is given."
    )
    precision: Literal["auto", "fp32", "bf16", "fp8"] = Field(
        default="fp32", description="Of the forward pass; auto: bf16 on a GPU that has it, else fp32; fp8 needs torchao."
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.99, description="Decay of an average of the weights, to evaluate by; 0: off."
    )


class TabularClassification(Section):
    """Which class a row of a table belongs to, by a residual MLP."""

    model_config = between(WHOLE, UNDIVIDED)

    data: TabularData = Field(default_factory=lambda: TabularData(), description="A table and its classes.")
    model: TabularNetwork = Field(default_factory=lambda: TabularNetwork(), description="The residual MLP.")
    class_weights: Literal["none", "balanced"] = Field(default="none", description="balanced: each class weighs the same in the loss.")
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = Field(default=0.0, description="Focal loss: how much less easy rows weigh.")
    decision: Decision = Field(default_factory=lambda: Decision(), description="The threshold of two classes, by costs.")
    training: TabularTraining = Field(
        default_factory=lambda: TabularTraining(), description="How long, in which portions, from which seed."
    )
    optimizer: Optimizer = Field(default_factory=lambda: Optimizer(), description="Which rule updates the weights.")
    schedule: Schedule = Field(default_factory=lambda: Schedule(), description="How the learning rate moves.")
    parallelism: DataParallelism = Field(default_factory=lambda: DataParallelism(), description="How the processes share the work.")
    checkpoint: Checkpoint = Field(default_factory=lambda: Checkpoint(), description="Where the state is kept.")
    output: Output = Field(default_factory=lambda: Output(), description="What is said and drawn.")

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.data.source == "csv" and not self.data.path:
            raise ValueError(_NO_CSV)
        check_undivided(self.parallelism)
        check_layout(self.optimizer, self.parallelism)
        return self
