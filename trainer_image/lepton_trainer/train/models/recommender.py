"""Matrix factorisation with biases (Koren et al., 2009), and a DLRM (Naumov et al., 2019) on top of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lepton_trainer.train.data.ratings import Encoder

_FIRST = 0.05
"""Standard deviation of the vectors at the beginning: the biases are learnt first."""


class Factorization(nn.Module):
    """Candidates [n, 1 + c], a user and c items each -> scores [n, c]: mean + bias of the user + bias of the item + their product.

    Place 0 stands for a user or item that is not known: its vector and bias are and stay 0.
    """

    def __init__(self, users: int, items: int, factors: int, mean: float) -> None:
        super().__init__()
        self.mean = mean
        # Not called `embedding`: here weight decay is what keeps vectors of few ratings small.
        self.users, self.items = nn.Embedding(users, factors, padding_idx=0), nn.Embedding(items, factors, padding_idx=0)
        self.user_bias, self.item_bias = nn.Embedding(users, 1, padding_idx=0), nn.Embedding(items, 1, padding_idx=0)
        for vectors, size in ((self.users, _FIRST), (self.items, _FIRST), (self.user_bias, 0.0), (self.item_bias, 0.0)):
            nn.init.normal_(vectors.weight, std=size)
            with torch.no_grad():
                vectors.weight[0] = 0.0

    def product(self, user: Tensor, items: Tensor) -> Tensor:
        biases = self.user_bias(user).squeeze(-1) + self.item_bias(items).squeeze(-1)
        found: Tensor = self.mean + biases + torch.einsum("nf,ncf->nc", self.users(user[:, 0]), self.items(items))
        return found

    def forward(self, candidates: Tensor) -> Tensor:
        return self.product(candidates[:, :1], candidates[:, 1:])


class Dlrm(Factorization):
    """The same, plus an MLP over the products of the vectors of the user, the item and each thing known of them, each with each.

    The vectors themselves are kept from the MLP, as in the original: it would learn who is who by heart.

    Args:
        user_table, item_table: [users or items, columns, values], places of each one's known values, 0 where there are fewer.
        values: how many places there are, over all columns of both.
    """

    user_table: Tensor
    rows: Tensor
    columns: Tensor
    item_table: Tensor

    def __init__(
        self, users: int, items: int, factors: int, mean: float, user_table: Tensor, item_table: Tensor, values: int, width: int
    ) -> None:
        super().__init__(users, items, factors, mean)
        self.register_buffer("user_table", user_table, persistent=False)
        self.register_buffer("item_table", item_table, persistent=False)
        self.known = nn.Embedding(values, factors, padding_idx=0)
        nn.init.normal_(self.known.weight, std=_FIRST)
        with torch.no_grad():
            self.known.weight[0] = 0.0
        vectors = 2 + user_table.shape[1] + item_table.shape[1]
        rows, columns = torch.triu_indices(vectors, vectors, 1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        self.blocks = nn.ModuleList([nn.Linear(len(rows), width), nn.Linear(width, width)])
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def _vectors(self, table: Tensor, own: Tensor) -> Tensor:
        """Of known values [..., columns, values] and the entity's own vector [..., f] -> [..., 1 + columns, f]: means over the values."""
        total = self.known(table).sum(dim=-2) / (table > 0).sum(dim=-1, keepdim=True).clamp(min=1)
        return torch.cat([own.unsqueeze(-2), total], dim=-2)

    def forward(self, candidates: Tensor) -> Tensor:
        user, items = candidates[:, :1], candidates[:, 1:]
        of_user = self._vectors(self.user_table[user], self.users(user)).expand(-1, items.shape[1], -1, -1)
        vectors = torch.cat([of_user, self._vectors(self.item_table[items], self.items(items))], dim=2)
        x = (vectors @ vectors.transpose(2, 3))[:, :, self.rows, self.columns]
        for block in self.blocks:
            x = F.relu(block(x))
        score: Tensor = self.product(user, items) + self.head(x).squeeze(-1)
        return score


def fitting(preprocessing: Mapping[str, Any], kind: str, factors: int, width: int) -> nn.Module:
    """The model for the users and items that the encoder of `preprocessing` knows."""
    encoder = Encoder.from_json(preprocessing["encoder"])
    users, items = len(encoder.users) + 1, len(encoder.items) + 1
    if kind == "factorization":
        return Factorization(users, items, factors, encoder.mean)
    tables = [
        torch.tensor(places, dtype=torch.long).reshape(len(places), len(known), -1)
        if known
        else torch.zeros(len(places), 0, 1, dtype=torch.long)
        for places, known in ((encoder.user_table, encoder.known_of_users), (encoder.item_table, encoder.known_of_items))
    ]
    return Dlrm(users, items, factors, encoder.mean, tables[0], tables[1], encoder.values, width)
