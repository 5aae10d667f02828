"""Prompts in, text out, by a language model: token after token, all prompts of a batch side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lepton_trainer.train.data.text import Encoder
from lepton_trainer.train.serving.adapters import Refused, device_of, shown

MOST = 1024
"""Tokens of one answer."""
PROMPT = 1 << 20
"""Characters of a prompt; the model sees the last tokens that its context holds."""
DEFAULTS: dict[str, Any] = {"max_tokens": 32, "temperature": 0.0, "seed": 0}


@dataclass(slots=True)
class Wish:
    """One prompt as tokens, and how it is to go on."""

    tokens: list[int]
    most: int
    temperature: float
    dice: torch.Generator
    made: list[int] = field(default_factory=list)
    ended: bool = False


class Completions:
    """Instances are {"prompt": text, "max_tokens": n, "temperature": t, "seed": s}, or the prompt alone; of a model that was trained on
    tokens, {"tokens": [numbers], ...}."""

    limit = 16

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        self.encoder = Encoder.from_json(preprocessing)
        self.key = "prompt" if self.encoder.tokenizer else "tokens"
        what = "text" if self.encoder.tokenizer else f"[numbers below {self.encoder.vocabulary}]"
        self.expects = (
            f'{{"{self.key}": {what}, "max_tokens": 1 to {MOST}, "temperature": 0 to 10, "seed": number}}, all but {self.key} optional'
        )
        # Each document ended with a NUL in training, so it ends an answer, too.
        vocabulary = range(self.encoder.vocabulary) if self.encoder.tokenizer else range(0)
        self.ends = {token for token in vocabulary if "\0" in self.encoder.decode([token])}

    def read(self, instance: Any) -> Wish:
        if isinstance(instance, str) and self.encoder.tokenizer:
            instance = {"prompt": instance}
        if not isinstance(instance, dict) or self.key not in instance:
            raise Refused(f"found {shown(instance)}")
        unknown = sorted(instance.keys() - {self.key, *DEFAULTS})
        if unknown:
            raise Refused(f"found the key {shown(unknown[0])}")
        wished = DEFAULTS | instance
        self._number(wished, "max_tokens", int, 1, MOST)
        self._number(wished, "temperature", (int, float), 0, 10)
        self._number(wished, "seed", int, 0, 2**63 - 1)
        dice = torch.Generator().manual_seed(wished["seed"])
        return Wish(self._tokens(instance[self.key]), wished["max_tokens"], float(wished["temperature"]), dice)

    def _number(self, wished: dict[str, Any], name: str, kind: Any, low: int, high: int) -> None:
        value = wished[name]
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise Refused(f"found {shown(value)} as {name}")

    def _tokens(self, given: Any) -> list[int]:
        if not self.encoder.tokenizer:
            good = isinstance(given, list) and given and all(type(t) is int and 0 <= t < self.encoder.vocabulary for t in given)
            if not good:
                raise Refused(f"found {shown(given)} as tokens")
            tokens: list[int] = given
            return tokens
        if not isinstance(given, str) or len(given) > PROMPT:
            raise Refused(f"found {shown(given)} as prompt, of which {PROMPT:,} characters are the most")
        try:
            return self.encoder.encode(given or "\0")  # what stands before a document's beginning
        except UnicodeEncodeError:
            raise Refused("the prompt has half of a surrogate pair in it, which is no character") from None

    def answer(self, model: nn.Module, items: Sequence[Wish]) -> list[dict[str, Any]]:
        going = list(items)
        device = device_of(model)
        while going:
            windows = [(wish.tokens + wish.made)[-self.encoder.context :] for wish in going]
            longest = max(map(len, windows))
            # What is filled up stands behind the last token, and the model only looks back.
            batch = torch.tensor([row + [0] * (longest - len(row)) for row in windows], device=device)
            last = torch.tensor([len(row) - 1 for row in windows], device=device)
            outputs = model(batch)[torch.arange(len(going), device=device), last].float().cpu()
            for wish, logits in zip(going, outputs, strict=True):
                token = _choose(wish, logits)
                wish.ended = token in self.ends
                if not wish.ended:
                    wish.made.append(token)
            going = [wish for wish in going if not wish.ended and len(wish.made) < wish.most]
        return [self._told(wish) for wish in items]

    def _told(self, wish: Wish) -> dict[str, Any]:
        facts = {"count": len(wish.made), "finish": "end" if wish.ended else "length"}
        return ({"text": self.encoder.decode(wish.made)} if self.encoder.tokenizer else {"tokens": wish.made}) | facts

    def example(self) -> Any:
        return {"prompt": "a", "max_tokens": 1} if self.encoder.tokenizer else {"tokens": [0], "max_tokens": 1}


def _choose(wish: Wish, logits: Tensor) -> int:
    if not wish.temperature:
        return int(logits.argmax())
    return int(torch.multinomial((logits / wish.temperature).softmax(dim=0), 1, generator=wish.dice))
