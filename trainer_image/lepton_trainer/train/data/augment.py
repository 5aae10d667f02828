"""Images turned, moved, scaled and mirrored on the fly, each by numbers that depend on (seed, epoch, sample) alone.

So the same sample looks the same in the same epoch whichever process computes it, and before and after a restart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lepton_trainer.train.data.order import Int64s, keyed, uniform

_STREAM = 0xA06  # keeps these numbers apart from the order's, which come from the same seed


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Bounds: `shift` in pixels, `rotate` in degrees, `zoom` as a fraction, `flip` for half of the images."""

    seed: int
    shift: int
    rotate: float
    zoom: float
    flip: bool

    @property
    def active(self) -> bool:
        return bool(self.shift or self.rotate or self.zoom or self.flip)

    def __call__(self, images: Tensor, epochs: Int64s, indices: Int64s) -> Tensor:
        """Images [n, c, h, w], float, and as many epochs and sample indices -> images of the same shape; outside is 0."""
        count, _, height, width = images.shape
        numbers = (
            2.0 * uniform(keyed(self.seed, np.int64(_STREAM).reshape(1), epochs[:, None], indices[:, None], np.arange(5)[None, :])) - 1.0
        )
        angle = numbers[:, 0] * math.radians(self.rotate)
        scale = 1.0 + numbers[:, 1] * self.zoom
        mirror = np.where((numbers[:, 4] < 0) & self.flip, -1.0, 1.0)
        theta = np.empty((count, 2, 3), dtype=np.float32)
        theta[:, 0, 0] = np.cos(angle) / scale * mirror
        theta[:, 0, 1] = -np.sin(angle) / scale * (height / width)
        theta[:, 1, 0] = np.sin(angle) / scale * mirror * (width / height)
        theta[:, 1, 1] = np.cos(angle) / scale
        theta[:, 0, 2] = numbers[:, 2] * self.shift * 2.0 / width
        theta[:, 1, 2] = numbers[:, 3] * self.shift * 2.0 / height
        grid = F.affine_grid(torch.from_numpy(theta), [count, 1, height, width], align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
