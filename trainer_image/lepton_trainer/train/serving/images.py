"""Images in, classes out: nested lists of pixels, or a picture file in base64."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from lepton_trainer.train.data.images import Array, Encoder, pixels_of
from lepton_trainer.train.serving.adapters import Refused, classified, device_of, shown

LARGEST = 64_000_000
"""Pixels of a picture file: one that says it has more is not unpacked."""


class Images:
    """Instances are [c, h, w] or, with one channel, [h, w] numbers from 0 to 255, or {"image": base64 of PNG, JPEG ...}."""

    limit = 64

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        self.encoder = Encoder.from_json(preprocessing)
        channels, height, width = self.encoder.shape
        sizes = f"{channels} x {height} x {width}" if channels > 1 else f"{height} x {width}"
        self.expects = f'{sizes} numbers from 0 to 255 as nested lists, or {{"image": "base64 of a PNG or JPEG file"}}'

    def read(self, instance: Any) -> Array:
        if isinstance(instance, dict):
            return self._picture(instance)
        if not isinstance(instance, list):
            raise Refused(f"found {shown(instance)}")
        try:
            pixels = np.asarray(instance)
        except (ValueError, OverflowError):
            raise Refused("the nested lists are not all of one length") from None
        if pixels.size and pixels.dtype.kind not in "iuf":
            raise Refused("found something else than numbers in the nested lists")
        shape = self.encoder.shape
        if pixels.shape == shape[1:] and shape[0] == 1:
            pixels = pixels[None]
        if pixels.shape != shape:
            raise Refused(f"found nested lists of {' x '.join(map(str, pixels.shape))}")
        # NaN compares false, so this refuses it, too.
        if not ((pixels >= 0) & (pixels <= 255)).all():
            raise Refused("found a number outside 0 to 255")
        return pixels.astype(np.float32)

    def _picture(self, instance: dict[str, Any]) -> Array:
        from PIL import Image, UnidentifiedImageError

        if instance.keys() != {"image"} or not isinstance(instance["image"], str):
            raise Refused(f"found an object with {shown(sorted(instance))}")
        try:
            raw = base64.b64decode(instance["image"], validate=True)
        except (binascii.Error, ValueError):
            raise Refused("image is not base64") from None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(io.BytesIO(raw)) as picture:
                    if picture.width * picture.height > LARGEST:
                        raise Refused(f"image has {picture.width} x {picture.height} pixels, {LARGEST:,} in all is the most")
                    return pixels_of(picture, self.encoder.shape).astype(np.float32)
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            raise Refused("image is no whole picture file") from None

    def answer(self, model: nn.Module, items: Sequence[Array]) -> list[dict[str, Any]]:
        return classified(model(self.encoder(torch.from_numpy(np.stack(items))).to(device_of(model))), self.encoder.labels)

    def example(self) -> Any:
        channels, height, width = self.encoder.shape
        return [[[0] * width] * height] * channels
