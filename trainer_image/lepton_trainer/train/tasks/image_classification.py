"""Which class an image belongs to."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lepton_trainer.train import models
from lepton_trainer.train.data import images
from lepton_trainer.train.data.augment import Augmentation
from lepton_trainer.train.data.order import Int64s
from lepton_trainer.train.settings.image_classification import ImageClassification


class ImageClassificationTask:
    """A residual CNN on normalised images; the figure of merit is the accuracy on the held-out split, 0 to 1."""

    metric = "accuracy"
    sums = 2
    mode: Literal["max", "min"] = "max"
    units = 1
    tokens = 0

    def __init__(self, config: ImageClassification) -> None:
        self.config = config
        self.data = data = images.load(config.data)
        self.size, self.test_size = len(data.train_images), len(data.test_images)
        self.augmentation = Augmentation(config.training.seed, config.data.shift, config.data.rotate, config.data.zoom, config.data.flip)
        channels, height, width = data.train_images.shape[1:]
        self.encoder = images.Encoder((channels, height, width), data.mean, data.std, data.classes)
        self.preprocessing = self.encoder.to_json()
        self.description: dict[str, Any] = {
            "kind": "resnet",
            "channels": channels,
            "classes": len(data.classes),
            **config.model.model_dump(),
        }
        self.identity: dict[str, Any] = {"model": config.model.model_dump(), "classes": len(data.classes), "data": data.key}
        self.flops = _training_flops(self.model(), torch.zeros(1, *data.train_images.shape[1:]))
        self.notes = [f"{count} rows left out: {reason}" for reason, count in data.rejected.items()]
        missing = sorted(set(range(len(data.classes))) - set(np.unique(data.train_labels).tolist()))
        if missing:
            self.notes.append(f"no training image of class {', '.join(data.classes[i] for i in missing)}")

    def model(self) -> nn.Module:
        return models.build(self.description, self.preprocessing)

    def batch(self, epochs: Int64s, indices: Int64s) -> tuple[Tensor, Tensor]:
        inputs = torch.from_numpy(self.data.train_images[indices]).float()
        if self.augmentation.active:
            inputs = self.augmentation(inputs, epochs, indices)
        return self.encoder(inputs), torch.from_numpy(self.data.train_labels[indices])

    def test_batch(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        inputs = torch.from_numpy(np.array(self.data.test_images[first:last])).float()
        return self.encoder(inputs), torch.from_numpy(np.array(self.data.test_labels[first:last]))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs.float(), targets, reduction="sum", label_smoothing=self.config.label_smoothing)

    def score(self, outputs: Tensor, targets: Tensor) -> Tensor:
        loss = F.cross_entropy(outputs.float(), targets, reduction="sum")
        right = (outputs.argmax(dim=1) == targets).sum()
        return torch.stack([loss.double(), right.double()])

    def metrics(self, sums: list[float]) -> dict[str, float]:
        return {"test_loss": sums[0] / self.test_size, "accuracy": sums[1] / self.test_size}


def _training_flops(model: nn.Module, example: Tensor) -> float:
    """Operations of a forward and backward pass: 6 per weight of a convolution or linear layer and output position."""
    total = 0.0

    def count(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += 6.0 * module.weight.numel() * (output.shape[2] * output.shape[3] if output.dim() == 4 else 1)

    hooks = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    model.eval()
    with torch.no_grad():
        model(example)
    for hook in hooks:
        hook.remove()
    return total
