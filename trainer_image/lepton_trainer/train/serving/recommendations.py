"""A user and an item in, a rating or score out; or a user alone, and the items that come first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lepton_trainer.train.data.encoding import as_text
from lepton_trainer.train.data.ratings import UNKNOWN, Encoder
from lepton_trainer.train.serving.adapters import Refused, device_of, shown

MOST = 1000
"""Items of one answer."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A user's place, and an item's place, or how many items and which ones not."""

    user: int
    item: int | None
    top: int
    without: frozenset[int]


class Recommendations:
    """Instances are {"user": id, "item": id}, or {"user": id, "top": n, "exclude": [ids]}. Who is not known gets what suits all."""

    limit = 64

    def __init__(self, preprocessing: Mapping[str, Any]) -> None:
        self.encoder = Encoder.from_json(preprocessing["encoder"])
        self.ranks = preprocessing["objective"] == "ranking"
        self.users = {name: place for place, name in enumerate(self.encoder.users, 1)}
        self.items = {name: place for place, name in enumerate(self.encoder.items, 1)}
        self.expects = f'{{"user": id, "item": id}}, or {{"user": id, "top": 1 to {MOST}, "exclude": [ids of items]}}'

    def read(self, instance: Any) -> Wish:
        if not isinstance(instance, dict) or "user" not in instance:
            raise Refused(f"found {shown(instance)}")
        allowed = {"user", "item"} if "item" in instance else {"user", "top", "exclude"}
        unknown = sorted(instance.keys() - allowed)
        if unknown:
            raise Refused(f"found the key {shown(unknown[0])} beside {' and '.join(sorted(instance.keys() & allowed))}")
        user = self.users.get(self._id(instance["user"], "user"), UNKNOWN)
        if "item" in instance:
            return Wish(user, self.items.get(self._id(instance["item"], "item"), UNKNOWN), 0, frozenset())
        top, exclude = instance.get("top", 10), instance.get("exclude", [])
        if type(top) is not int or not 1 <= top <= MOST:
            raise Refused(f"found {shown(top)} as top")
        if not isinstance(exclude, list):
            raise Refused(f"found {shown(exclude)} as exclude")
        return Wish(user, None, top, frozenset(self.items.get(self._id(one, "item"), UNKNOWN) for one in exclude))

    def _id(self, given: Any, what: str) -> str:
        if isinstance(given, bool) or not isinstance(given, str | int | float) or not as_text(given):
            raise Refused(f"found {shown(given)} as {what}")
        return as_text(given)

    def answer(self, model: nn.Module, items: Sequence[Wish]) -> list[dict[str, Any]]:
        device = device_of(model)
        pairs = [wish for wish in items if wish.item is not None]
        scored: list[float] = []
        if pairs:
            rows = torch.tensor([[wish.user, wish.item] for wish in pairs], device=device)
            scored = self._bounded(model(rows)[:, 0])
        turn = iter(scored)
        return [self._pair(wish, next(turn)) if wish.item is not None else self._list(wish, model, device) for wish in items]

    def _bounded(self, outputs: Tensor) -> list[float]:
        found: list[float] = (outputs.float() if self.ranks else outputs.float().clamp(self.encoder.low, self.encoder.high)).cpu().tolist()
        return found

    def _pair(self, wish: Wish, score: float) -> dict[str, Any]:
        known = {"known_user": wish.user != UNKNOWN, "known_item": wish.item != UNKNOWN}
        return {"score" if self.ranks else "rating": score, **known}

    def _list(self, wish: Wish, model: nn.Module, device: torch.device) -> dict[str, Any]:
        places = torch.arange(1, len(self.encoder.items) + 1, device=device)
        outputs = model(torch.cat([torch.tensor([wish.user], device=device), places])[None])[0].float()
        for place in wish.without - {UNKNOWN}:
            outputs[place - 1] = -torch.inf
        best = outputs.topk(min(wish.top, len(places) - len(wish.without - {UNKNOWN})))
        name = "score" if self.ranks else "rating"
        rows = zip(best.indices.tolist(), self._bounded(best.values), strict=True)
        return {"items": [{"item": self.encoder.items[index], name: value} for index, value in rows], "known_user": wish.user != UNKNOWN}

    def example(self) -> Any:
        return {"user": self.encoder.users[0], "top": 1}
