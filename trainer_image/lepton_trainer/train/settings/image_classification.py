"""Settings of image classification."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from lepton_trainer.train.settings.section import Section, between, needs_path
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


class ImageData(Section):
    """Images and their classes."""

    model_config = between(needs_path("digits"))

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


class ImageClassification(Section):
    """Which class an image belongs to, by a residual CNN."""

    model_config = between(WHOLE, UNDIVIDED)

    data: ImageData = Field(default_factory=lambda: ImageData(), description="Images and their classes.")
    model: ResidualNetwork = Field(default_factory=lambda: ResidualNetwork(), description="The residual CNN.")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.0, description="Part of the target given to all classes alike.")
    training: Training = Field(default_factory=lambda: Training(), description="How long, in which portions, from which seed.")
    optimizer: Optimizer = Field(default_factory=lambda: Optimizer(), description="Which rule updates the weights.")
    schedule: Schedule = Field(default_factory=lambda: Schedule(), description="How the learning rate moves.")
    parallelism: DataParallelism = Field(default_factory=lambda: DataParallelism(), description="How the processes share the work.")
    checkpoint: Checkpoint = Field(default_factory=lambda: Checkpoint(), description="Where the state is kept.")
    output: Output = Field(default_factory=lambda: Output(), description="What is said and drawn.")

    @model_validator(mode="after")
    def _sense(self) -> Self:
        if self.data.source != "digits" and not self.data.path:
            raise ValueError(f"data.path is missing: source {self.data.source} needs the directory of its files")
        check_undivided(self.parallelism)
        check_layout(self.optimizer, self.parallelism)
        return self
