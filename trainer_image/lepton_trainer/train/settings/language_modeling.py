"""Settings of language modelling."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lepton_trainer.train.settings.section import Section, between, needs_path
from lepton_trainer.train.settings.shared import WHOLE, Checkpoint, Optimizer, Output, Parallelism, Schedule, Training, check_layout

_TOKENS = "data.tokenBytes is 2, which holds 65536 tokens at most: write 4, or a smaller vocabulary"


class TextData(Section):
    """Text, or tokens made from it before."""

    model_config = between(
        needs_path("stdlib"),
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


class LanguageModeling(Section):
    """The next token of a text, by a decoder transformer."""

    model_config = between(WHOLE)

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
        check_layout(self.optimizer, self.parallelism)
        return self
