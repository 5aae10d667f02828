"""Sources of data: bad rows are counted and said, splits are fixed, normalisation knows the training split only, the cache is made once."""

from __future__ import annotations

import gzip
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import trainer_runs as runs
from lepton_trainer.train import tasks
from lepton_trainer.train.config import parse
from lepton_trainer.train.data import cache, images, text
from lepton_trainer.train.data.augment import Augmentation
from lepton_trainer.train.data.feed import Feed
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.image_classification import ImageData
from lepton_trainer.train.settings.language_modeling import TextData


@pytest.fixture(autouse=True)
def private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_idx(path: Path, array: NDArray[Any]) -> None:
    code = {"uint8": 8, "float32": 13}[array.dtype.name]
    path.write_bytes(
        struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape) + array.astype(array.dtype.newbyteorder(">")).tobytes()
    )


def mnist(base: Path, train: int = 40, test: int = 10, dtype: str = "uint8") -> ImageData:
    base.mkdir(exist_ok=True)
    for split, count in (("train", train), ("t10k", test)):
        pixels = (np.arange(count * 64).reshape(count, 8, 8) % 251).astype(dtype)
        write_idx(base / f"{split}-images-idx3-ubyte", pixels)
        write_idx(base / f"{split}-labels-idx1-ubyte", (np.arange(count) % 10).astype(np.uint8))
    return ImageData(source="mnist", path=str(base))


def pictures(base: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 3) -> ImageData:
    for split in ("train", "test"):
        for number, name in enumerate(classes):
            (base / split / name).mkdir(parents=True, exist_ok=True)
            for index in range(each):
                Image.new("RGB", (20, 12), (number * 90, index * 40, 7)).save(base / split / name / f"{index}.png")
    return ImageData(source="folder", path=str(base), image_size=8)


def test_digits_are_split_and_normalised_by_the_training_split() -> None:
    found = images.load(ImageData())
    assert len(found.train_images) + len(found.test_images) == 1797 and len(found.test_images) == 449
    pixels = found.train_images / 255.0
    assert found.mean == pytest.approx([pixels.mean()]) and found.std == pytest.approx([pixels.std()])
    assert images.load(ImageData(split_seed=1)).test_labels.tolist() != found.test_labels.tolist()


def test_idx_files_are_read_plain_and_gzipped(tmp_path: Path) -> None:
    config = mnist(tmp_path / "mnist")
    plain = images.load(config)
    for file in list((tmp_path / "mnist").iterdir()):
        (file.parent / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    zipped = images.load(config)
    assert np.array_equal(plain.train_images, zipped.train_images) and plain.train_images.shape == (40, 1, 8, 8)


def test_a_cut_idx_file_is_named(tmp_path: Path) -> None:
    config = mnist(tmp_path / "mnist")
    file = tmp_path / "mnist" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte: is not a whole IDX file"):
        images.load(config)


def test_a_label_out_of_range_is_counted_and_beyond_the_limit_ends_the_run(tmp_path: Path) -> None:
    config = mnist(tmp_path / "mnist")
    write_idx(tmp_path / "mnist" / "train-labels-idx1-ubyte", np.array([200] + [1] * 39, dtype=np.uint8))
    with pytest.raises(UserError, match=r"1 of 40 rows are bad \(1 x label outside 0 to 9\), more than data.maxBadFraction 0.01 allows"):
        images.load(config)
    found = images.load(config.model_copy(update={"max_bad_fraction": 0.05}))
    assert found.rejected == {"label outside 0 to 9": 1} and len(found.train_images) == 39


def test_nan_in_the_data_is_counted(tmp_path: Path) -> None:
    config = mnist(tmp_path / "mnist", dtype="float32").model_copy(update={"max_bad_fraction": 0.05})
    pixels = np.ones((40, 8, 8), dtype=np.float32)
    pixels[3, 1, 1] = np.nan
    write_idx(tmp_path / "mnist" / "train-images-idx3-ubyte", pixels)
    found = images.load(config)
    assert found.rejected == {"not a finite number": 1} and len(found.train_images) == 39


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no usable rows"):
        images.load(mnist(tmp_path / "mnist", test=0))
    with pytest.raises(UserError, match=r"data.testFraction: leaves an empty split"):
        images.load(ImageData(test_fraction=0.0001))


def test_images_and_labels_must_be_as_many(tmp_path: Path) -> None:
    config = mnist(tmp_path / "mnist")
    write_idx(tmp_path / "mnist" / "train-labels-idx1-ubyte", np.zeros(39, dtype=np.uint8))
    with pytest.raises(UserError, match="40 images but 39 labels"):
        images.load(config)


def test_a_missing_directory_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such directory"):
        images.load(ImageData(source="mnist", path=str(tmp_path / "nowhere")))
    config = mnist(tmp_path / "mnist")
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(UserError, match="t10k-labels-idx1-ubyte: there is no such file"):
        images.load(config)


def test_a_folder_of_pictures_becomes_classes_and_a_corrupt_one_is_counted(tmp_path: Path) -> None:
    config = pictures(tmp_path / "pets")
    found = images.load(config)
    assert (
        found.classes == ["cat", "dog"] and found.train_images.shape == (6, 3, 8, 8) and found.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    )
    broken = tmp_path / "pets" / "train" / "dog" / "0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    (tmp_path / "pets" / "test" / "bird").mkdir()
    Image.new("RGB", (9, 9)).save(tmp_path / "pets" / "test" / "bird" / "0.png")
    with pytest.raises(UserError, match="1 of 6 rows are bad"):
        images.load(config)
    found = images.load(config.model_copy(update={"max_bad_fraction": 0.5}))
    assert found.rejected == {"not a whole image": 1, "class bird is not in train": 1}


def test_an_image_looks_the_same_in_an_epoch_whoever_computes_it_and_else_different() -> None:
    augment = Augmentation(seed=1, shift=2, rotate=10, zoom=0.1, flip=True)
    batch = torch.rand(6, 1, 12, 12)
    epochs, indices = np.array([0, 0, 0, 1, 1, 1]), np.array([4, 5, 6, 4, 5, 6])
    whole = augment(batch, epochs, indices)
    assert torch.allclose(whole[1:3], augment(batch[1:3], epochs[1:3], indices[1:3]), atol=1e-6)
    assert not torch.allclose(augment(batch[:3], epochs[3:], indices[3:]), whole[:3])
    still = Augmentation(seed=1, shift=0, rotate=0.0, zoom=0.0, flip=False)
    assert not still.active and torch.allclose(still(batch, epochs, indices), batch, atol=1e-5)


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_text_survives_its_tokens(tmp_path: Path, tokenizer: Any) -> None:
    folder = runs.text_folder(tmp_path / "text")
    (folder / "accents.txt").write_text("naïve café — ok " * 30)
    found = text.load(TextData(source="folder", path=str(folder), tokenizer=tokenizer, vocabulary=300, test_fraction=0.2), context=16)
    assert found.token_bytes is not None and found.vocabulary == (256 if tokenizer == "bytes" else 300)
    stored = [np.asarray(part.shards[0]) for part in (found.train, found.test)]
    total = sum(int(found.token_bytes[tokens].sum()) for tokens in stored)
    assert total == sum(len(file.read_bytes()) + 1 for file in folder.iterdir()), "bits per byte divides by the bytes of the text"


def test_windows_share_one_token_and_cross_no_shard() -> None:
    windows = text.Windows([("a", np.arange(10)), ("b", np.arange(100, 108)), ("c", np.arange(3))], context=3)
    assert len(windows) == 5
    assert windows[np.array([0, 2, 3, 4])].tolist() == [[0, 1, 2, 3], [6, 7, 8, 9], [100, 101, 102, 103], [103, 104, 105, 106]]


def test_files_that_are_not_text_are_counted_and_a_byte_order_mark_is_dropped(tmp_path: Path) -> None:
    folder = runs.text_folder(tmp_path / "text")
    (folder / "latin.txt").write_bytes("é".encode("latin-1") * 50)
    config = TextData(source="folder", path=str(folder), tokenizer="bytes")
    with pytest.raises(UserError, match=r"1 of 25 rows are bad \(1 x not UTF-8\)"):
        text.load(config, 16)
    assert text.load(config.model_copy(update={"max_bad_fraction": 0.1}), 16).rejected == {"not UTF-8": 1}


def test_token_shards_are_mapped_and_a_token_beyond_the_vocabulary_is_named(tmp_path: Path) -> None:
    for split in ("train", "test"):
        np.arange(400, dtype="<u2").tofile(tmp_path / f"{split}.bin")
    settings = {"data": {"source": "tokens", "path": str(tmp_path), "vocabulary": 300}, "model": {"context": 8}}
    task = tasks.build(parse({"languageModeling": settings}))
    assert task.size == 49 and task.metric == "bits_per_token"
    task.batch(np.zeros(1, dtype=np.int64), np.array([0]))
    with pytest.raises(UserError, match=r"holds token 392, but data.vocabulary is 300"):
        task.batch(np.zeros(1, dtype=np.int64), np.arange(49))


def test_too_little_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="less than one window of 8192 tokens"):
        text.load(TextData(source="folder", path=str(runs.text_folder(tmp_path / "t")), tokenizer="bytes"), 8192)
    with pytest.raises(UserError, match=r"no file matches \*\*/\*.md"):
        text.load(TextData(source="folder", path=str(tmp_path / "t"), pattern="**/*.md"), 16)


def test_data_is_prepared_once_however_many_ask_and_again_when_it_changes() -> None:
    made = []

    def make() -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        made.append(1)
        return {"x": np.arange(3)}, {"n": 3}

    threads = [threading.Thread(target=cache.prepared, args=("content", {"a": 1}, make)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    arrays, facts = cache.prepared("content", {"a": 1}, make)
    assert arrays["x"].tolist() == [0, 1, 2] and facts["n"] == 3 and len(made) == 1
    cache.prepared("content", {"a": 2}, make)
    cache.prepared("other", {"a": 1}, make)
    assert len(made) == 3


def test_a_preparation_that_fails_leaves_nothing(private_cache: Path) -> None:
    def make() -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        raise UserError("no")

    with pytest.raises(UserError):
        cache.prepared("content", {}, make)
    assert [file.suffix for file in (private_cache / "data").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="Set LEPTON_CACHE"):
        cache.root()


def test_the_feed_gives_every_position_once_and_passes_an_error_on() -> None:
    task = tasks.build(parse({"imageClassification": {}}))
    feed = Feed(task, 0, 100, 400, 64, rank=1, world=3)
    batches = list(feed)
    assert [(b.start, b.stop) for b in batches] == [(100, 164), (164, 228), (228, 292), (292, 356), (356, 400)]
    assert all(len(b.inputs) == len(b.indices) == len(b.targets) for b in batches)
    feed.close()

    def broken(*_: Any) -> Any:
        raise UserError("bad sample")

    task.batch = broken  # type: ignore[method-assign]
    with pytest.raises(UserError, match="bad sample"):
        list(Feed(task, 0, 0, 64, 8, rank=0, world=1))


def test_a_feed_that_is_closed_early_ends_its_thread() -> None:
    feed = Feed(tasks.build(parse({"imageClassification": {}})), 0, 0, 100_000, 8, rank=0, world=1)
    next(iter(feed))
    feed.close()
    assert not feed._thread.is_alive()
