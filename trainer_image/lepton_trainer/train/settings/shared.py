"""Settings that the tasks share: how long, by which rule, on how many processes, and where it is written."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lepton_trainer.train.settings.section import Section, between

_PIPELINE = "parallelism.pipeline goes with data parallelism alone: write strategy ddp and tensor 1 beside it"
_MUON = "optimizer.name muon needs whole matrices: use it with strategy ddp and tensor 1, or use adamw"
_SHARDS = "has(self.strategy) && self.strategy == 'fsdp' || has(self.tensor) && self.tensor > 1"
_ALONE = (f"!has(self.pipeline) || self.pipeline == 1 || !({_SHARDS})", _PIPELINE)
WHOLE = (
    "!has(self.optimizer) || !has(self.optimizer.name) || self.optimizer.name != 'muon' || !has(self.parallelism)"
    f" || !({_SHARDS.replace('self.', 'self.parallelism.')})",
    _MUON,
)

_UNDIVIDED = "parallelism.tensor and parallelism.pipeline must be 1 here: this model has no such layout; use ddp or fsdp"
UNDIVIDED = (
    "!has(self.parallelism) || (!has(self.parallelism.tensor) || self.parallelism.tensor == 1)"
    " && (!has(self.parallelism.pipeline) || self.parallelism.pipeline == 1)",
    _UNDIVIDED,
)


class Training(Section):
    """How long, in which portions, and from which seed."""

    epochs: Annotated[float, Field(gt=0, le=100_000)] = Field(
        default=10.0, description="Passes over the training data; ignored where steps is given."
    )
    steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(default=0, description="Optimiser steps; 0: as epochs says.")
    global_batch: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=64, description="Samples per step over all processes, however many they are."
    )
    micro_batch: Annotated[int, Field(ge=0, le=1_048_576)] = Field(
        default=0, description="Most samples of one pass in one process; 0: its whole share."
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="Decides initial weights, order, augmentation.")
    precision: Literal["auto", "fp32", "bf16", "fp8"] = Field(
        default="auto", description="Of the forward pass; auto: bf16 on a GPU that has it, else fp32; fp8 needs torchao."
    )
    deterministic: bool = Field(default=False, description="Deterministic kernels; slower on a GPU.")
    compile: bool = Field(default=False, description="torch.compile each block of the model.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Decay of an average of the weights, to evaluate by; 0: off.")
    evaluate_every_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(default=0, description="0: once per epoch and at the end.")
    patience: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=0, description="Stop after so many evaluations without a better one; 0: off."
    )


class Optimizer(Section):
    """Which rule updates the weights."""

    name: Literal["adamw", "sgd", "muon"] = Field(default="adamw", description="muon: for matrices of hidden layers, AdamW for the rest.")
    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(default=0.001, description="The highest of the schedule.")
    muon_learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(default=0.02, description="For the matrices, where name is muon.")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(default=0.01, description="Of matrices and kernels; decoupled but for SGD.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="Of SGD (Nesterov) and Muon.")
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="Of AdamW.")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.999, description="Of AdamW.")
    clip_norm: Annotated[float, Field(ge=0, le=1_000_000)] = Field(default=0.0, description="Largest norm of the gradient; 0: off.")


class Schedule(Section):
    """How the learning rate moves over the steps."""

    name: Literal["cosine", "wsd", "step", "constant"] = Field(
        default="cosine", description="wsd: stable, then linear decay; step: times stepFactor after each stepEvery."
    )
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(default=0.05, description="Fraction of steps in which the rate rises from 0.")
    decay: Annotated[float, Field(ge=0, le=1)] = Field(default=0.2, description="Fraction of steps that wsd's decay takes.")
    final: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, description="Fraction of the rate left at the end (cosine, wsd).")
    step_every: Annotated[float, Field(gt=0, le=1)] = Field(default=0.3, description="Fraction of steps between two drops.")
    step_factor: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="Fraction of the rate that a drop leaves.")


class Parallelism(Section):
    """How the processes share the work; the result does not depend on it."""

    model_config = between(_ALONE)

    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="ddp: a whole model in each process; fsdp: sharded; auto: ddp where it fits.",
    )
    tensor: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="Processes that share each matrix (language models).")
    pipeline: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="Processes that share the blocks (language models).")


class DataParallelism(Parallelism):
    """How the processes share the work; the result does not depend on it."""

    model_config = between()  # where the model has no other layout, tensor and pipeline are refused as such


class Checkpoint(Section):
    """Where the state is kept, how often, and how many."""

    path: Annotated[str, Field(max_length=1024)] = Field(
        default="", description="A directory or s3://bucket/prefix; empty: the job's own, by hand runs/TASK."
    )
    every_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(default=0, description="0: at each epoch's end and at the end.")
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(default=2, description="How many stay.")


class Output(Section):
    """What is said and drawn."""

    directory: Annotated[str, Field(max_length=1024)] = Field(
        default="",
        description="Of history, curves, result; empty: the checkpoint's, if remote runs/TASK.",
    )
    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=10, description="Steps between two reports.")
    plots: bool = Field(default=True, description="Draw curves as PNG at each evaluation.")
    ledger: bool = Field(default=False, description="Write which samples each step used, for an audit.")


def check_layout(optimizer: Optimizer, parallelism: Parallelism) -> None:
    """Raises ValueError where the optimiser and the layout do not go together."""
    if parallelism.pipeline > 1 and (parallelism.strategy == "fsdp" or parallelism.tensor > 1):
        raise ValueError(_PIPELINE)
    if optimizer.name == "muon" and (parallelism.strategy == "fsdp" or parallelism.tensor > 1):
        raise ValueError(_MUON)


def check_undivided(parallelism: Parallelism) -> None:
    """Raises ValueError where a model that only data parallelism suits is to be divided."""
    if parallelism.tensor > 1 or parallelism.pipeline > 1:
        raise ValueError(_UNDIVIDED)
