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


class Training(Section):
    """How long, in which portions, and from which seed."""

    epochs: Annotated[float, Field(gt=0, le=100_000)] = Field(
        default=10.0, description="Passes over the training data; ignored where steps is given."
    )
    steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(default=0, description="Optimiser steps; 0 means that epochs decides.")
    global_batch: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=64, description="Samples per optimiser step over all processes; the same whatever the number of processes is."
    )
    micro_batch: Annotated[int, Field(ge=0, le=1_048_576)] = Field(
        default=0, description="Most samples that one process computes at once, the rest is accumulated; 0 means its whole share."
    )
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(
        default=0, description="Decides the initial weights, the order and the augmentation."
    )
    precision: Literal["auto", "fp32", "bf16", "fp8"] = Field(
        default="auto", description="Of the forward pass; auto is bf16 on a GPU that has it, else fp32; fp8 needs torchao and such a GPU."
    )
    deterministic: bool = Field(default=False, description="Ask torch for deterministic kernels only; slower on a GPU.")
    compile: bool = Field(default=False, description="Compile each block of the model with torch.compile.")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Decay of an average of the weights, used for evaluation; 0 is off."
    )
    evaluate_every_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(
        default=0, description="0 means once per epoch and at the end."
    )
    patience: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=0, description="Stop after this many evaluations without a better one; 0 is off."
    )


class Optimizer(Section):
    """Which rule updates the weights."""

    name: Literal["adamw", "sgd", "muon"] = Field(
        default="adamw", description="muon updates matrices of hidden layers, AdamW everything else."
    )
    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(
        default=0.001, description="The highest learning rate that the schedule reaches."
    )
    muon_learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(default=0.02, description="For the matrices, where name is muon.")
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.01, description="Decoupled for AdamW and Muon; matrices and kernels only."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="Of SGD (Nesterov) and Muon.")
    beta1: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="Of AdamW.")
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.999, description="Of AdamW.")
    clip_norm: Annotated[float, Field(ge=0, le=1_000_000)] = Field(default=0.0, description="Largest norm of the gradient; 0 is off.")


class Schedule(Section):
    """How the learning rate moves over the steps."""

    name: Literal["cosine", "wsd", "step", "constant"] = Field(
        default="cosine", description="wsd: warm-up, stable, then a linear decay; step: times stepFactor after every stepEvery."
    )
    warmup: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.05, description="Fraction of all steps in which the rate rises linearly from 0."
    )
    decay: Annotated[float, Field(ge=0, le=1)] = Field(default=0.2, description="Fraction of all steps that wsd's decay takes.")
    final: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0, description="What is left of the rate at the end (cosine, wsd), as a fraction."
    )
    step_every: Annotated[float, Field(gt=0, le=1)] = Field(default=0.3, description="Fraction of all steps between two drops of step.")
    step_factor: Annotated[float, Field(gt=0, le=1)] = Field(default=0.1, description="What a drop of step leaves of the rate.")


class Parallelism(Section):
    """How the processes share the work; the result does not depend on it."""

    model_config = between(_ALONE)

    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto",
        description="ddp: a whole model in each process; fsdp: weights and optimiser state sharded; auto: ddp where it fits.",
    )
    tensor: Annotated[int, Field(ge=1, le=64)] = Field(default=1, description="Processes that share each matrix (language modelling only).")
    pipeline: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Processes that share the blocks, in stages (language modelling only)."
    )


class Checkpoint(Section):
    """Where the state is kept, how often, and how many."""

    path: Annotated[str, Field(max_length=1024)] = Field(
        default="", description="A directory or s3://bucket/prefix; empty means the job's own directory, or runs/TASK by hand."
    )
    every_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] = Field(default=0, description="0 means at each epoch's end and at the end.")
    keep: Annotated[int, Field(ge=1, le=1000)] = Field(default=2, description="How many are kept; the newest always is.")


class Output(Section):
    """What is said and drawn."""

    directory: Annotated[str, Field(max_length=1024)] = Field(
        default="",
        description="Where history, curves and the result go; empty means the checkpoint's directory, or runs/TASK where that is remote.",
    )
    every_steps: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=10, description="Steps between two reports of loss and throughput."
    )
    plots: bool = Field(default=True, description="Draw loss, metric and learning rate as PNG at each evaluation.")
    ledger: bool = Field(default=False, description="Write which sample was used in which step, one file per process, for an audit.")


def check_layout(optimizer: Optimizer, parallelism: Parallelism) -> None:
    """Raises ValueError where the optimiser and the layout do not go together."""
    if parallelism.pipeline > 1 and (parallelism.strategy == "fsdp" or parallelism.tensor > 1):
        raise ValueError(_PIPELINE)
    if optimizer.name == "muon" and (parallelism.strategy == "fsdp" or parallelism.tensor > 1):
        raise ValueError(_MUON)
