"""Text as windows of tokens: the source of Python's library, a folder of text files, or shards of tokens made before.

Whole files are held out, never parts of one. Files that are not UTF-8 are counted and reported. Every document ends with a NUL byte,
whatever the tokenizer, so bits per byte compare across tokenizers.
"""

from __future__ import annotations

import hashlib
import sysconfig
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_trainer.train.data import cache
from lepton_trainer.train.data.images import enforce, split_mask
from lepton_trainer.train.data.order import Int64s, keyed
from lepton_trainer.train.errors import UserError
from lepton_trainer.train.settings.language_modeling import TextData

Array = NDArray[Any]
_TOKENIZER_BYTES = 16 << 20  # a vocabulary settles long before; more text only costs time


class Windows:
    """Consecutive windows of `context` + 1 tokens, each sharing one token with the next; none crosses a shard."""

    def __init__(self, shards: Sequence[tuple[str, Array]], context: int) -> None:
        self.names = [name for name, _ in shards]
        self.shards = [tokens for _, tokens in shards]
        self.context = context
        self.ends = np.cumsum([max(len(tokens) - 1, 0) // context for tokens in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, indices: Int64s) -> Int64s:
        """Windows at `indices` [n] -> tokens [n, context + 1]."""
        rows = np.empty((len(indices), self.context + 1), dtype=np.int64)
        for row, index in zip(rows, indices, strict=True):
            shard = int(np.searchsorted(self.ends, index, side="right"))
            first = (int(index) - (int(self.ends[shard - 1]) if shard else 0)) * self.context
            row[:] = self.shards[shard][first : first + self.context + 1]
        return rows


@dataclass(frozen=True, slots=True)
class TextSet:
    """Two splits of windows; `token_bytes` [vocabulary] is the length of each token in bytes, None where it is unknown."""

    train: Windows
    test: Windows
    vocabulary: int
    token_bytes: Array | None
    rejected: dict[str, int]
    key: str
    tokenizer: str
    """`bytes`, a tokenizer of the tokenizers package as JSON, or nothing where the data came as tokens."""


class Encoder:
    """From text to tokens and back: the one way, in training and in serving. Kept with the model as JSON."""

    def __init__(self, tokenizer: str, vocabulary: int, context: int) -> None:
        self.tokenizer, self.vocabulary, self.context = tokenizer, vocabulary, context
        self._bpe: Any = None
        if tokenizer not in ("", "bytes"):
            from tokenizers import Tokenizer

            self._bpe = Tokenizer.from_str(tokenizer)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Encoder:
        return cls(document["tokenizer"], document["vocabulary"], document["context"])

    def to_json(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer, "vocabulary": self.vocabulary, "context": self.context}

    def encode(self, text: str) -> list[int]:
        found: list[int] = self._bpe.encode(text).ids if self._bpe is not None else list(text.encode())
        return found

    def decode(self, tokens: Sequence[int]) -> str:
        """Bytes that are no whole character become U+FFFD."""
        text: str = self._bpe.decode(list(tokens)) if self._bpe is not None else bytes(tokens).decode("utf-8", "replace")
        return text


def load(config: TextData, context: int) -> TextSet:
    """The source that the configuration names, prepared or from the cache.

    Raises:
        UserError: the data is missing or unusable, or a split holds less than one window.
    """
    loaded = _tokens(config, context) if config.source == "tokens" else _text(config, context)
    for split, windows in (("training", loaded.train), ("test", loaded.test)):
        if not len(windows):
            raise UserError(
                f"the {split} split has less than one window of {context} tokens",
                where=f"data.source {config.source}",
                instead="Add text, or lower model.context or data.testFraction",
            )
    return loaded


def _text(config: TextData, context: int) -> TextSet:
    if config.source == "stdlib":
        base = Path(sysconfig.get_paths()["stdlib"])
        files = sorted(f for f in base.rglob("*.py") if not {"site-packages", "dist-packages"} & set(f.relative_to(base).parts))
    else:
        base = Path(config.path).expanduser()
        if not base.is_dir():
            raise UserError("there is no such directory", where=f"data.path {config.path}", instead="Write where the text files are")
        files = sorted(f for f in base.glob(config.pattern) if f.is_file())
    if not files:
        raise UserError(
            f"no file matches {config.pattern}", where=f"data.path {config.path}", instead="Write another data.pattern or data.path"
        )
    settings = config.model_dump(exclude={"path", "pattern"})

    def make() -> tuple[dict[str, Array], dict[str, Any]]:
        documents, rejected = _read(files, base, config)
        held = split_mask(len(documents), config.test_fraction, config.split_seed)
        splits = {
            "train": [d for d, out in zip(documents, held, strict=True) if not out],
            "test": [d for d, out in zip(documents, held, strict=True) if out],
        }
        for split, texts in splits.items():
            if not texts:
                raise UserError(
                    f"leaves the {split} split empty: {len(documents)} files",
                    where="data.testFraction",
                    instead="Add files, or write another fraction",
                )
        return _tokenize(splits, config, rejected)

    arrays, facts = cache.prepared(cache.digest_of_files(files, base), settings, make)
    return TextSet(
        Windows([("train", arrays["train"])], context),
        Windows([("test", arrays["test"])], context),
        facts["vocabulary"],
        np.asarray(arrays["token_bytes"]),
        facts["rejected"],
        facts["key"],
        facts.get("tokenizer", "bytes"),
    )


def _read(files: list[Path], base: Path, config: TextData) -> tuple[list[str], dict[str, int]]:
    """The text of the files that are UTF-8, in an order mixed by split_seed, up to max_bytes."""
    documents, bad, size = [], 0, 0
    for index in np.argsort(keyed(config.split_seed, np.arange(len(files))), kind="stable"):
        raw = files[index].read_bytes()
        if config.max_bytes and size + len(raw) > config.max_bytes:
            if size:
                continue
            raw = raw[: config.max_bytes].decode("utf-8", "ignore").encode()
        try:
            documents.append(raw.decode("utf-8-sig"))
            size += len(raw)
        except UnicodeDecodeError:
            bad += 1
    rejected = {"not UTF-8": bad} if bad else {}
    enforce(Counter(rejected), len(files), str(base), config.max_bad_fraction)
    return documents, rejected


def _tokenize(splits: dict[str, list[str]], config: TextData, rejected: dict[str, int]) -> tuple[dict[str, Array], dict[str, Any]]:
    if config.tokenizer == "bytes":
        arrays: dict[str, Array] = {
            split: np.frombuffer("".join(f"{text}\0" for text in texts).encode(), dtype=np.uint8) for split, texts in splits.items()
        }
        return {**arrays, "token_bytes": np.ones(256, dtype=np.int32)}, {"vocabulary": 256, "rejected": rejected}

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False, special_tokens=[]
    )
    sample, size = [], 0
    for text in splits["train"]:
        sample.append(f"{text}\0")
        size += len(text)
        if size > _TOKENIZER_BYTES:
            break
    tokenizer.train_from_iterator(sample, trainer)
    vocabulary = tokenizer.get_vocab_size()
    dtype = np.uint16 if vocabulary <= 65_536 else np.uint32
    arrays = {}
    for split, texts in splits.items():
        parts = [
            np.asarray(encoded.ids, dtype=dtype)
            for first in range(0, len(texts), 256)
            for encoded in tokenizer.encode_batch([f"{text}\0" for text in texts[first : first + 256]])
        ]
        arrays[split] = np.concatenate(parts)
    # In the byte-level alphabet one character stands for one byte.
    lengths = np.zeros(vocabulary, dtype=np.int32)
    for token, number in tokenizer.get_vocab().items():
        lengths[number] = len(token)
    return {**arrays, "token_bytes": lengths}, {"vocabulary": vocabulary, "rejected": rejected, "tokenizer": tokenizer.to_str()}


def _tokens(config: TextData, context: int) -> TextSet:
    base = Path(config.path).expanduser()
    if not base.is_dir():
        raise UserError("there is no such directory", where=f"data.path {config.path}", instead="Write where the .bin files are")
    dtype = np.dtype("<u2" if config.token_bytes == 2 else "<u4")
    total = hashlib.sha256()
    splits: dict[str, list[tuple[str, Array]]] = {}
    for split in ("train", "test"):
        splits[split] = []
        for file in sorted(base.glob(f"{split}*.bin")):
            size = file.stat().st_size
            if not size or size % dtype.itemsize:
                raise UserError(
                    f"has {size} bytes, not a multiple of data.tokenBytes {dtype.itemsize}",
                    where=str(file),
                    instead="Copy it again, or mend tokenBytes",
                )
            splits[split].append((str(file), np.memmap(file, dtype, mode="r")))
            with file.open("rb") as stream:  # the ends stand for the whole: shards may hold terabytes
                total.update(f"{file.name} {size} ".encode() + stream.read(1 << 20))
                stream.seek(max(0, size - (1 << 20)))
                total.update(stream.read())
        if not splits[split]:
            raise UserError(
                f"there is no {split}*.bin", where=f"data.path {config.path}", instead="Both train*.bin and test*.bin are needed"
            )
    return TextSet(
        Windows(splits["train"], context), Windows(splits["test"], context), config.vocabulary, None, {}, total.hexdigest()[:32], ""
    )
