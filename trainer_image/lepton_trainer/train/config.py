"""What a user may write, one pydantic model per task; the file's shape is the resource's `trainer.builtin`.

    imageClassification: {data: {source: digits}, training: {epochs: 40}}

Exactly one task per file, camelCase keys, unknown keys and wrong types refused. Every field here is read by the code: there is no
option without effect. A value that is not wanted is left out, never null.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from lepton_trainer.train.errors import UserError

SCHEMA_VERSION = 1
RULES = "x-kubernetes-validations"


class Section(BaseModel):
    """A group of settings: strict types, no unknown keys, no nulls."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, alias_generator=to_camel, populate_by_name=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _no_nulls(cls, value: Any) -> Any:
        if isinstance(value, dict):
            nulls = [str(key) for key, item in value.items() if item is None]
            if nulls:
                raise ValueError(f"{nulls[0]} has no value: leave the key out instead of writing null")
        return value


def between(*rules: tuple[str, str]) -> ConfigDict:
    """Rules between a section's settings as the API server judges them: (CEL, message). The models' own validators say the same."""
    return ConfigDict(json_schema_extra={RULES: [{"rule": rule, "message": message} for rule, message in rules]})


_PIPELINE = "parallelism.pipeline goes with data parallelism alone: write strategy ddp and tensor 1 beside it"
_MUON = "optimizer.name muon needs whole matrices: use it with strategy ddp and tensor 1, or use adamw"
_TOKENS = "data.tokenBytes is 2, which holds 65536 tokens at most: write 4, or a smaller vocabulary"
_NO_LAYOUT = "parallelism.tensor and parallelism.pipeline must be 1 here: the CNN has no such layout; use ddp or fsdp"
_SHARDS = "has(self.strategy) && self.strategy == 'fsdp' || has(self.tensor) && self.tensor > 1"
_ALONE = (f"!has(self.pipeline) || self.pipeline == 1 || !({_SHARDS})", _PIPELINE)
_WHOLE = (
    "!has(self.optimizer) || !has(self.optimizer.name) || self.optimizer.name != 'muon' || !has(self.parallelism)"
    f" || !({_SHARDS.replace('self.', 'self.parallelism.')})",
    _MUON,
)


def _needs_path(built_in: str) -> tuple[str, str]:
    return (
        f"!has(self.source) || self.source == '{built_in}' || has(self.path) && self.path != ''",
        f"data.path is missing: write the directory of the files, or source {built_in}",
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


class ImageData(Section):
    """Images and their classes."""

    model_config = between(_needs_path("digits"))

    source: Literal["digits", "mnist", "folder"] = Field(
        default="digits",
        description="digits: scikit-learn's; mnist: IDX files in path; folder: path/train/CLASS/*.png and path/test/CLASS/*.png.",
    )
    path: Annotated[str, Field(max_length=1024)] = Field(default="", description="Directory of the data, for mnist and folder.")
    image_size: Annotated[int, Field(ge=8, le=512)] = Field(default=64, description="Edge to which images of a folder are scaled.")
    grayscale: bool = Field(default=False, description="Read images of a folder with one channel instead of three.")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.25, description="Held out where the source has no test set of its own."
    )
    split_seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="Decides which samples are held out.")
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="More unreadable or invalid rows than this end the run."
    )
    shift: Annotated[int, Field(ge=0, le=64)] = Field(default=1, description="Augmentation: move by up to this many pixels each way.")
    rotate: Annotated[float, Field(ge=0, le=180)] = Field(
        default=8.0, description="Augmentation: turn by up to this many degrees each way."
    )
    zoom: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.08, description="Augmentation: scale by up to this fraction each way.")
    flip: bool = Field(default=False, description="Augmentation: mirror half of the images left to right.")


class ResidualNetwork(Section):
    """A residual CNN with batch norm."""

    width: Annotated[int, Field(ge=4, le=1024)] = Field(
        default=32, description="Channels of the first stage; doubled at each following one."
    )
    stages: Annotated[int, Field(ge=1, le=5)] = Field(default=3, description="Stages; each after the first halves the image.")
    blocks: Annotated[int, Field(ge=1, le=32)] = Field(default=1, description="Residual blocks per stage.")
    stem_stride: Annotated[int, Field(ge=1, le=4)] = Field(
        default=1, description="Stride of the first convolution; 2 makes it four times cheaper."
    )


class TextData(Section):
    """Text, or tokens made from it before."""

    model_config = between(
        _needs_path("stdlib"),
        (
            "!has(self.source) || self.source != 'tokens' || !has(self.vocabulary) || self.vocabulary <= 65536"
            " || has(self.tokenBytes) && self.tokenBytes == 4",
            _TOKENS,
        ),
    )

    source: Literal["stdlib", "folder", "tokens"] = Field(
        default="stdlib",
        description="stdlib: the source of Python's library; folder: text files under path; tokens: path/train*.bin and path/test*.bin.",
    )
    path: Annotated[str, Field(max_length=1024)] = Field(default="", description="Directory of the data, for folder and tokens.")
    pattern: Annotated[str, Field(max_length=256)] = Field(default="**/*.txt", description="Which files of a folder are text.")
    tokenizer: Literal["bytes", "bpe"] = Field(
        default="bpe", description="bpe is byte-level and trained on the training split; bytes has 256 tokens."
    )
    vocabulary: Annotated[int, Field(ge=257, le=262_144)] = Field(default=4096, description="Size of the vocabulary of bpe, or of tokens.")
    token_bytes: Literal[2, 4] = Field(default=2, description="Bytes of one token in the .bin files of tokens (little-endian, unsigned).")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="Files held out where the source has no test set of its own."
    )
    split_seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="Decides which files are held out.")
    max_bytes: Annotated[int, Field(ge=0, le=2**53)] = Field(default=0, description="Use no more text than this; 0 means all.")
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="More files that are not UTF-8 than this end the run."
    )


class DecoderTransformer(Section):
    """A decoder with RMSNorm, RoPE, SwiGLU and grouped-query attention."""

    preset: Literal["1M", "4M", "124M", "1.5B", "1B", "3B", "8B"] = Field(
        default="1M", description="Width, depth and heads by name; see docs/trainer.md."
    )
    context: Annotated[int, Field(ge=8, le=131_072)] = Field(default=128, description="Tokens of one sample.")


class TextTraining(Training):
    """The same for text, with its own defaults."""

    epochs: Annotated[float, Field(gt=0, le=100_000)] = Field(
        default=1.0, description="Passes over the training data; ignored where steps is given."
    )


class TextOptimizer(Optimizer):
    """The same for text, with its own defaults."""

    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(
        default=0.003, description="The highest learning rate that the schedule reaches."
    )
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.1, description="Decoupled for AdamW and Muon; matrices and kernels only."
    )
    beta2: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.95, description="Of AdamW.")
    clip_norm: Annotated[float, Field(ge=0, le=1_000_000)] = Field(default=1.0, description="Largest norm of the gradient; 0 is off.")


class TextSchedule(Schedule):
    """The same for text, with its own defaults."""

    final: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="What is left of the rate at the end (cosine, wsd), as a fraction."
    )


class ImageClassification(Section):
    """Which class an image belongs to, by a residual CNN."""

    model_config = between(
        _WHOLE,
        (
            "!has(self.parallelism) || (!has(self.parallelism.tensor) || self.parallelism.tensor == 1)"
            " && (!has(self.parallelism.pipeline) || self.parallelism.pipeline == 1)",
            _NO_LAYOUT,
        ),
    )

    data: ImageData = Field(default_factory=lambda: ImageData(), description="Images and their classes.")
    model: ResidualNetwork = Field(default_factory=lambda: ResidualNetwork(), description="The residual CNN.")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Part of the target given to all classes alike.")
    training: Training = Field(default_factory=lambda: Training(), description="How long, in which portions, from which seed.")
    optimizer: Optimizer = Field(default_factory=lambda: Optimizer(), description="Which rule updates the weights.")
    schedule: Schedule = Field(default_factory=lambda: Schedule(), description="How the learning rate moves.")
    parallelism: Parallelism = Field(default_factory=lambda: Parallelism(), description="How the processes share the work.")
    checkpoint: Checkpoint = Field(default_factory=lambda: Checkpoint(), description="Where the state is kept.")
    output: Output = Field(default_factory=lambda: Output(), description="What is said and drawn.")

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.data.source != "digits" and not self.data.path:
            raise ValueError(f"data.path is missing: source {self.data.source} needs the directory of its files")
        if self.parallelism.tensor > 1 or self.parallelism.pipeline > 1:
            raise ValueError(_NO_LAYOUT)
        _check_layout(self.optimizer, self.parallelism)
        return self


class LanguageModeling(Section):
    """The next token of a text, by a decoder transformer."""

    model_config = between(_WHOLE)

    data: TextData = Field(default_factory=lambda: TextData(), description="Text, or tokens made from it before.")
    model: DecoderTransformer = Field(default_factory=lambda: DecoderTransformer(), description="The decoder transformer.")
    training: TextTraining = Field(default_factory=lambda: TextTraining(), description="How long, in which portions, from which seed.")
    optimizer: TextOptimizer = Field(default_factory=lambda: TextOptimizer(), description="Which rule updates the weights.")
    schedule: TextSchedule = Field(default_factory=lambda: TextSchedule(), description="How the learning rate moves.")
    parallelism: Parallelism = Field(default_factory=lambda: Parallelism(), description="How the processes share the work.")
    checkpoint: Checkpoint = Field(default_factory=lambda: Checkpoint(), description="Where the state is kept.")
    output: Output = Field(default_factory=lambda: Output(), description="What is said and drawn.")

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.data.source != "stdlib" and not self.data.path:
            raise ValueError(f"data.path is missing: source {self.data.source} needs the directory of its files")
        if self.data.source == "tokens" and self.data.token_bytes == 2 and self.data.vocabulary > 65_536:
            raise ValueError(_TOKENS)
        _check_layout(self.optimizer, self.parallelism)
        return self


def _check_layout(optimizer: Optimizer, parallelism: Parallelism) -> None:
    if parallelism.pipeline > 1 and (parallelism.strategy == "fsdp" or parallelism.tensor > 1):
        raise ValueError(_PIPELINE)
    if optimizer.name == "muon" and (parallelism.strategy == "fsdp" or parallelism.tensor > 1):
        raise ValueError(_MUON)


TaskConfig = ImageClassification | LanguageModeling
TASKS: dict[str, type[ImageClassification] | type[LanguageModeling]] = {
    "imageClassification": ImageClassification,
    "languageModeling": LanguageModeling,
}


def parse(document: object, where: str = "the configuration") -> TaskConfig:
    """The one task of `document`, validated.

    Raises:
        UserError: naming each wrong key, and what is allowed there.
    """
    if not isinstance(document, dict) or len(document) != 1:
        found = ", ".join(map(str, document)) if isinstance(document, dict) and document else "none"
        raise UserError(
            f"exactly one task is needed, found {found}", where=where, instead=f"Write one of {', '.join(TASKS)} with its settings below it"
        )
    name, settings = next(iter(document.items()))
    model = TASKS.get(name) if isinstance(name, str) else None
    if model is None:
        raise UserError(f"{name!r} is no task", where=where, instead=f"Write one of {', '.join(TASKS)}")
    try:
        return model.model_validate({} if settings is None else settings)
    except ValidationError as error:
        lines = [_explain(model, name, item) for item in error.errors(include_url=False)]
        raise UserError("; ".join(lines), where=where) from None


def load(path: Path) -> TaskConfig:
    """Read and validate a YAML file.

    Raises:
        UserError: the file is missing, is not YAML, or is wrong.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(
            "there is no such file", where=str(path), instead="`python -m lepton_trainer explain TASK` shows what to write"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark is not None else str(path)
        raise UserError(f"is not YAML: {getattr(error, 'problem', error)}", where=place) from None
    return parse(document, str(path))


def _explain(model: type[BaseModel], task: str, item: ErrorDetails) -> str:
    """One validation error as a sentence that says what to write."""
    place = ".".join([task, *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        inside: Any = model
        for key in item["loc"][:-1]:
            inside = next(f.annotation for f in inside.model_fields.values() if f.alias == key)
        allowed = ", ".join(str(field.alias) for field in inside.model_fields.values())
        return f"{place} is not a setting (allowed there: {allowed})"
    message = item["msg"].removeprefix("Value error, ")
    return f"{place}: {message[0].lower() + message[1:]}" + (f", not {item['input']!r}" if item["type"] != "value_error" else "")
