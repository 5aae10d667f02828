"""Settings of recommendation."""

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

_NO_CSV = "data.path is missing: write the csv file, or a directory with ratings.csv"
Name = Annotated[str, Field(max_length=256)]


class RatingData(Section):
    """Who rated or took what."""

    model_config = between(("!has(self.source) || self.source != 'csv' || has(self.path) && self.path != ''", _NO_CSV))

    source: Literal["movielens", "csv"] = Field(
        default="movielens", description="movielens: the 100,000 ratings in the package recbole; csv: your own."
    )
    path: Annotated[str, Field(max_length=1024)] = Field(
        default="",
        description="The csv, or a directory with ratings.csv and, for dlrm, users.csv and items.csv; for movielens recbole's ml-100k.",
    )
    user: Name = Field(default="", description="Column of the users; empty: told from the names, else the first.")
    item: Name = Field(default="", description="Column of the items; empty: told from the names, else the second.")
    rating: Name = Field(default="", description="Column of the ratings; empty: one called rating, score or stars.")
    time: Name = Field(default="", description="Column of the time as a number; empty: one called timestamp or time.")
    encoding: Annotated[str, Field(max_length=32)] = Field(default="utf-8", description="Of the csv.")
    delimiter: Annotated[str, Field(max_length=1)] = Field(default="", description="Of the csv; empty: told from its first rows.")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.2, description="Ratings held out, for the objective rating.")
    split_seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = Field(default=0, description="Decides what is held out.")
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = Field(default=0.01, description="More bad rows than this end the run.")


class Recommender(Section):
    """Vectors of users and items, and what is made of them."""

    kind: Literal["factorization", "dlrm"] = Field(
        default="dlrm", description="factorization: biases and a product; dlrm: with what is known of users and items, and an MLP."
    )
    factors: Annotated[int, Field(ge=1, le=4096)] = Field(default=32, description="Size of each vector.")
    width: Annotated[int, Field(ge=8, le=8192)] = Field(default=64, description="Hidden units of dlrm.")


class RatingTraining(Training):
    """The same for ratings, with its own defaults."""

    global_batch: Annotated[int, Field(ge=1, le=1_048_576)] = Field(
        default=512, description="Samples per step over all processes, however many they are."
    )
    precision: Literal["auto", "fp32", "bf16", "fp8"] = Field(
        default="fp32", description="Of the forward pass; auto: bf16 on a GPU that has it, else fp32; fp8 needs torchao."
    )


class Recommendation(Section):
    """What a user will like, from who rated or took what."""

    model_config = between(WHOLE, UNDIVIDED)

    data: RatingData = Field(default_factory=lambda: RatingData(), description="Who rated or took what.")
    model: Recommender = Field(default_factory=lambda: Recommender(), description="Vectors of users and items, and what is made of them.")
    objective: Literal["rating", "ranking"] = Field(
        default="rating", description="rating: the number that a user gives; ranking: which items come first (softmax over negatives)."
    )
    negatives: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=32, description="For ranking: items that the user did not take, drawn for each one taken."
    )
    training: RatingTraining = Field(default_factory=lambda: RatingTraining(), description="How long, in which portions, from which seed.")
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
