"""Models of text classes: a linear or shallow one of weighted n-grams, a recurrent one with attention, an encoder transformer.

What fills a batch up to its longest text changes no output, so a text is judged the same alone and among others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lepton_trainer.train.data.words import UNIT
from lepton_trainer.train.models.transformer import FeedForward, RMSNorm, Shape, rotate, rotation

SCALE = 5.0
"""Length that the weights of a text are brought to: how fast the linear model moves at a given learning rate."""


class NGrams(nn.Module):
    """Numbers and weights of n-grams [n, 2, length], as `words.Encoder` makes them, -> logits [n, classes]."""

    def __init__(self, size: int, classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size, width or classes))
        self.bias = nn.Parameter(torch.zeros(width or classes))
        self.head = nn.Linear(width, classes) if width else None
        if width:
            nn.init.normal_(self.weight, std=0.1)

    def forward(self, inputs: Tensor) -> Tensor:
        numbers, weights = inputs[:, 0], inputs[:, 1] * (SCALE / UNIT)
        if torch.compiler.is_compiling():  # exported programs look rows up: ONNX knows no bag of weighted rows
            mixed = (F.embedding(numbers, self.weight) * weights[:, :, None]).sum(1)
        else:
            mixed = F.embedding_bag(numbers, self.weight, per_sample_weights=weights, mode="sum")
        mixed = mixed + self.bias
        result: Tensor = self.head(F.relu(mixed)) if self.head is not None else mixed
        return result


class Pooled(nn.Module):
    """States [n, t, width] of texts whose real words `mask` [n, t] names -> logits: the most of each unit beside a weighted mean."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.attention = nn.Linear(width, 1, bias=False)  # softmax takes no notice of a bias
        self.head = nn.Linear(2 * width, classes)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        states = states.float()
        scores = self.attention(states)[:, :, 0].float().masked_fill(~mask, float("-inf"))
        mean = (scores.softmax(1)[:, :, None] * states).sum(1)
        most = states.masked_fill(~mask[:, :, None], float("-inf")).amax(1)
        result: Tensor = self.head(torch.cat([mean, most], dim=1))
        return result


class Recurrent(nn.Module):
    """Words [n, t] -> logits; read in both directions. The backward one reads each text turned round within its own length."""

    def __init__(self, vocabulary: int, classes: int, width: int, layers: int, cell: str) -> None:
        super().__init__()
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.forwards = nn.ModuleList(kind(width * (1 + (layer > 0)), width, batch_first=True) for layer in range(layers))
        self.backwards = nn.ModuleList(kind(width * (1 + (layer > 0)), width, batch_first=True) for layer in range(layers))
        self.pool = Pooled(2 * width, classes)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, words: Tensor) -> Tensor:
        mask = words > 0
        places = torch.arange(words.shape[1], device=words.device)
        turned = (mask.sum(1, keepdim=True) - 1 - places).clamp(min=0)[:, :, None]
        states: Tensor = self.embedding(words)
        for onward, back in zip(self.forwards, self.backwards, strict=True):
            ahead = onward(states)[0]
            behind = back(states.gather(1, turned.expand_as(states)))[0]
            states = torch.cat([ahead, behind.gather(1, turned.expand_as(behind))], dim=2)
        result: Tensor = self.pool(states, mask)
        return result


class Attention(nn.Module):
    """Self-attention to every real word of the text [n, t, width] -> [n, t, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.mixed = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor) -> Tensor:
        count, length, width = x.shape
        q, k, v = self.mixed(x).view(count, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        found = F.scaled_dot_product_attention(rotate(q, table), rotate(k, table), v, attn_mask=mask)
        result: Tensor = self.output(found.transpose(1, 2).reshape(count, length, width))
        return result


class Block(nn.Module):
    """Attention, then feed-forward, each normalised before and added to what came in."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.attention_norm, self.feed_norm = RMSNorm(shape.width), RMSNorm(shape.width)
        self.attention = Attention(shape.width, shape.heads)
        self.feed = FeedForward(shape)

    def forward(self, x: Tensor, table: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), table, mask)
        result: Tensor = x + self.feed(self.feed_norm(x))
        return result


class TextEncoder(nn.Module):
    """Words [n, t] -> logits, by a transformer whose words see one another in both directions."""

    table: Tensor

    def __init__(self, vocabulary: int, classes: int, width: int, layers: int, max_length: int) -> None:
        super().__init__()
        heads = next(heads for heads in range(max(width // 32, 1), 0, -1) if width % (2 * heads) == 0)
        shape = Shape(width, layers, heads, heads, hidden=2 * width)
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)
        self.blocks = nn.ModuleDict({str(index): Block(shape) for index in range(layers)})
        self.norm = RMSNorm(width)
        self.pool = Pooled(width, classes)
        self.register_buffer("table", rotation(max_length, width // heads), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and name.startswith(("blocks", "embedding")):
                nn.init.normal_(parameter, std=0.1 if name.startswith("embedding") else 0.02)

    def forward(self, words: Tensor) -> Tensor:
        mask = words > 0
        x: Tensor = self.embedding(words)
        for block in self.blocks.values():
            x = block(x, self.table, mask[:, None, None, :])
        result: Tensor = self.pool(self.norm(x), mask)
        return result
