"""Labelled images: digits from scikit-learn, MNIST's IDX files, a folder of pictures; cleaned, split and normalised once.

Every source becomes the same thing, whole images in memory-mapped arrays of bytes. A row that cannot be used is counted by its
reason and reported; more of them than the limit end the run.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lepton_trainer.train.data import cache
from lepton_trainer.train.data.order import keyed
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.image_classification import ImageData

Array = NDArray[Any]
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Two splits of uint8 images [n, c, h, w] and int64 labels [n]; mean and std [c] are the training split's, of values 0 to 1."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array
    mean: list[float]
    std: list[float]
    classes: list[str]
    rejected: dict[str, int]
    key: str


@dataclass(frozen=True, slots=True)
class Encoder:
    """From pixels to what the model takes: the one way, in training and in serving. Kept with the model as JSON."""

    shape: tuple[int, int, int]
    """Channels, height, width."""
    mean: list[float]
    std: list[float]
    """Of the training split's channels, values 0 to 1."""
    labels: list[str]

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Encoder:
        channels, height, width = document["shape"]
        return cls((channels, height, width), document["mean"], document["std"], document["labels"])

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "mean": self.mean, "std": self.std, "labels": self.labels}

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels [n, c, h, w], float, 0 to 255; changed in place -> normalised."""
        mean = torch.tensor(self.mean).view(1, -1, 1, 1) * 255.0
        scale = 1.0 / (torch.tensor(self.std).view(1, -1, 1, 1) * 255.0)
        return pixels.sub_(mean).mul_(scale)


def pixels_of(picture: Any, shape: tuple[int, int, int]) -> Array:
    """A PIL picture cut to the shape's aspect and scaled to it -> uint8 [c, h, w]."""
    from PIL import Image, ImageOps

    channels, height, width = shape
    fitted = ImageOps.fit(picture.convert("L" if channels == 1 else "RGB"), (width, height), method=Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(height, width, channels).transpose(2, 0, 1)


def split_mask(count: int, fraction: float, seed: int) -> NDArray[np.bool_]:
    """True for the held-out ones of `count` samples: the `fraction` with the smallest hash; a function of the arguments alone."""
    held = round(count * fraction)
    mask = np.zeros(count, dtype=np.bool_)
    mask[np.argsort(keyed(seed, np.arange(count)), kind="stable")[:held]] = True
    return mask


def clean(images: Array, labels: Array, classes: int, where: str, limit: float) -> tuple[Array, Array, Counter[str]]:
    """Drop what cannot be learnt from, and count why.

    Args:
        images: [n, ...] of any number type; labels: [n].
        limit: the largest fraction of dropped rows that is accepted.
    Raises:
        UserError: more rows than that are bad, the lengths differ, or nothing is left.
    """
    if len(images) != len(labels):
        raise UserError(f"{len(images)} images but {len(labels)} labels", where=where, instead="Both files must describe the same rows")
    reasons: Counter[str] = Counter()
    good = np.ones(len(images), dtype=np.bool_)
    if np.issubdtype(images.dtype, np.floating):
        finite = np.isfinite(images.reshape(len(images), -1)).all(axis=1) if len(images) else good
        reasons["not a finite number"] = int((~finite).sum())
        good &= finite
    valid = (labels >= 0) & (labels < classes)
    reasons[f"label outside 0 to {classes - 1}"] = int((good & ~valid).sum())
    good &= valid
    enforce(reasons, len(images), where, limit)
    if not good.any():
        raise UserError("no usable rows", where=where, instead="A split needs at least one image with a label")
    return images[good], labels[good], +reasons


def enforce(reasons: Counter[str], total: int, where: str, limit: float) -> None:
    """Raise a UserError where more than the fraction `limit` of `total` rows is bad."""
    bad = sum(reasons.values())
    if bad > limit * total:
        detail = ", ".join(f"{count} x {reason}" for reason, count in (+reasons).items())
        raise UserError(
            f"{bad} of {total} rows are bad ({detail}), more than data.maxBadFraction {limit:g} allows",
            where=where,
            instead="Mend the data, or raise data.maxBadFraction to train without these rows",
        )


def read_idx(path: Path) -> Array:
    """An IDX file (the format of MNIST), plain or gzipped.

    Raises:
        UserError: it is not there, is no IDX file, or is shorter than its header says.
    """
    found = next((file for file in (path, path.with_name(path.name + ".gz")) if file.is_file()), None)
    if found is None:
        raise UserError("there is no such file", where=str(path), instead="data.path must hold MNIST's four IDX files, plain or .gz")
    try:
        raw = gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()
        zero, code, rank = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{rank}I", raw[4 : 4 + 4 * rank])
        dtype = np.dtype(_IDX_TYPES[code])
        if zero or len(raw) != 4 + 4 * rank + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize:
            raise ValueError("its length is not what its header says")
    except (OSError, EOFError, struct.error, KeyError, ValueError) as error:
        raise UserError(f"is not a whole IDX file ({error})", where=str(found), instead="Copy it again") from None
    return np.frombuffer(raw, dtype, offset=4 + 4 * rank).reshape(shape).astype(dtype.newbyteorder("="))


def load(config: ImageData) -> ImageSet:
    """The source that the configuration names, prepared or from the cache.

    Raises:
        UserError: the data is missing or unusable.
    """
    source = {"digits": _digits, "mnist": _mnist, "folder": _folder}[config.source]
    arrays, facts = source(config)
    return ImageSet(
        arrays["train_images"],
        arrays["train_labels"],
        arrays["test_images"],
        arrays["test_labels"],
        facts["mean"],
        facts["std"],
        facts["classes"],
        facts["rejected"],
        facts["key"],
    )


def _finish(
    train: tuple[Array, Array, Counter[str]], test: tuple[Array, Array, Counter[str]], classes: list[str]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays and facts from two cleaned splits of images [n, c, h, w] with values 0 to 255."""
    pixels = train[0].astype(np.float64) / 255.0
    arrays: dict[str, Array] = {
        "train_images": np.ascontiguousarray(train[0], dtype=np.uint8),
        "train_labels": train[1].astype(np.int64),
        "test_images": np.ascontiguousarray(test[0], dtype=np.uint8),
        "test_labels": test[1].astype(np.int64),
    }
    facts = {
        "mean": pixels.mean(axis=(0, 2, 3)).tolist(),
        "std": np.maximum(pixels.std(axis=(0, 2, 3)), 1e-3).tolist(),
        "classes": classes,
        "rejected": dict(train[2] + test[2]),
    }
    return arrays, facts


def _digits(config: ImageData) -> cache.Prepared:
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = data.images, data.target
    content = hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()

    def make() -> tuple[dict[str, Array], dict[str, Any]]:
        usable, classes, rejected = clean(images, labels, 10, "digits", config.max_bad_fraction)
        scaled = np.round(usable[:, None] * (255.0 / 16.0)).astype(np.uint8)
        held = split_mask(len(scaled), config.test_fraction, config.split_seed)
        if held.all() or not held.any():
            raise UserError(
                f"leaves an empty split of {len(held)} images", where="data.testFraction", instead="Write a value nearer to 0.25"
            )
        return _finish((scaled[~held], classes[~held], rejected), (scaled[held], classes[held], Counter()), [str(i) for i in range(10)])

    return cache.prepared(content, {"source": "digits", "fraction": config.test_fraction, "seed": config.split_seed}, make)


def _mnist(config: ImageData) -> cache.Prepared:
    base = _directory(config.path)
    names = [f"{split}-{kind}" for split in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    paths = [base / name if (base / name).exists() or not (base / _dotted(name)).exists() else base / _dotted(name) for name in names]
    files = [path if path.exists() else path.with_name(path.name + ".gz") for path in paths]
    content = cache.digest_of_files([file for file in files if file.exists()], base)

    def make() -> tuple[dict[str, Array], dict[str, Any]]:
        splits = []
        for images_path, labels_path in (paths[:2], paths[2:]):
            images, labels = read_idx(images_path), read_idx(labels_path)
            if images.ndim != 3 or labels.ndim != 1:
                raise UserError(f"has {images.ndim} dimensions, not 3", where=str(images_path), instead="Images are rows x height x width")
            usable, classes, rejected = clean(images, labels, 10, str(labels_path), config.max_bad_fraction)
            splits.append((np.clip(usable[:, None], 0, 255), classes, rejected))
        return _finish(splits[0], splits[1], [str(i) for i in range(10)])

    return cache.prepared(content, {"source": "mnist", "limit": config.max_bad_fraction}, make)


def _dotted(name: str) -> str:
    """The other common spelling of MNIST's names: train-images.idx3-ubyte."""
    return name.replace("-idx", ".idx")


def _folder(config: ImageData) -> cache.Prepared:
    base = _directory(config.path)
    splits: dict[str, list[Path]] = {}
    for split in ("train", "test"):
        where = base / split
        splits[split] = sorted(f for f in where.glob("*/*") if f.suffix.lower() in SUFFIXES) if where.is_dir() else []
        if not splits[split]:
            raise UserError("holds no images", where=str(where), instead=f"Put them there as CLASS/NAME with one of {' '.join(SUFFIXES)}")
    classes = sorted({file.parent.name for file in splits["train"]})
    content = cache.digest_of_files(splits["train"] + splits["test"], base)
    settings = {"source": "folder", "size": config.image_size, "grayscale": config.grayscale, "limit": config.max_bad_fraction}

    def make() -> tuple[dict[str, Array], dict[str, Any]]:
        done = {name: _decode(files, classes, config, base / name) for name, files in splits.items()}
        return _finish(done["train"], done["test"], classes)

    return cache.prepared(content, settings, make)


def _decode(files: list[Path], classes: list[str], config: ImageData, where: Path) -> tuple[Array, Array, Counter[str]]:
    """Read, convert and scale pictures; those that cannot be read and those of an unknown class are counted."""
    from PIL import Image, UnidentifiedImageError

    channels, edge = 1 if config.grayscale else 3, config.image_size
    images, labels = np.empty((len(files), channels, edge, edge), dtype=np.uint8), np.empty(len(files), dtype=np.int64)
    reasons: Counter[str] = Counter()
    kept = 0
    for file in files:
        if file.parent.name not in classes:
            reasons[f"class {file.parent.name} is not in train"] += 1
            continue
        try:
            with Image.open(file) as picture:
                images[kept] = pixels_of(picture, (channels, edge, edge))
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            reasons["not a whole image"] += 1
            continue
        labels[kept] = classes.index(file.parent.name)
        kept += 1
    enforce(reasons, len(files), str(where), config.max_bad_fraction)
    if not kept:
        raise UserError("no usable rows", where=str(where), instead="A split needs at least one image with a label")
    return images[:kept], labels[:kept], reasons


def _directory(path: str) -> Path:
    base = Path(path).expanduser()
    if not base.is_dir():
        raise UserError("there is no such directory", where=f"data.path {path}", instead="Write where the files are")
    return base
