"""Two-tower retrieval: a sequence model encodes the recent history, and item vectors fuse id and content.

The user tower is a causal transformer (Kang & McAuley 2018) whose attention decays with distance (Press et al. 2022). So
training on windows and serving on the newest events compute the same function. The item tower hides ids at random in
training, so that a cold item gets a vector from its content alone. `training.retrieval.fit_towers` trains them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.items.store import TEXT_DIMENSIONS
from models.release.sequences import EVENT_WIDTH, LENGTH
from training.recipe import TowerSettings

__all__ = ["Content", "ItemTower", "UserTower", "item_vectors"]

MEAN_RATE = 0.1
LAST = slice(-1, None)
"The place of the newest event."
"Initial rate at which an item's weight in the history mean falls with each later event."


@dataclass(slots=True)
class Content:
    """Content of n items, without their ids."""

    hashed: NDArray[np.float32]
    "Hashed words `(n, TEXT_DIMENSIONS)`."
    text: NDArray[np.float32]
    image: NDArray[np.float32]
    present: NDArray[np.float32]
    "Whether an item has text, and whether it has an image: `(n, 2)`."

    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """Arrays in the order of the item tower's arguments."""
        return self.hashed, self.text, self.image, self.present

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tensors in the order of the item tower's arguments."""
        return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in self.arrays())  # type: ignore[return-value]


class ItemTower(nn.Module):
    """Maps content, and the id's embedding where it is known and not hidden, to a vector with a bias in its last column."""

    UNREAD: ClassVar[frozenset[str]] = frozenset({"ids", "id_bias"})
    "Parts that `forward`, and so the exported graph, does not read."

    def __init__(self, n_items: int, text: int, image: int, dimensions: int) -> None:
        super().__init__()
        self.ids = nn.Embedding(n_items, dimensions)
        self.id_bias = nn.Embedding(n_items, 1)
        self.no_id = nn.Parameter(torch.zeros(dimensions))
        self.hashed = nn.Linear(TEXT_DIMENSIONS, dimensions, bias=False)
        self.text = nn.Linear(text, dimensions, bias=False)
        self.image = nn.Linear(image, dimensions, bias=False)
        self.missing = nn.Parameter(torch.zeros(2, dimensions))
        self.norm = nn.LayerNorm(dimensions)
        self.deep = nn.Sequential(nn.Linear(dimensions, dimensions), nn.GELU(), nn.Linear(dimensions, dimensions))
        self.bias = nn.Linear(dimensions, 1)
        nn.init.normal_(self.ids.weight, std=0.1)
        nn.init.zeros_(self.id_bias.weight)
        nn.init.zeros_(self.text.weight)  # so that uninformative content adds nothing
        nn.init.zeros_(self.image.weight)

    def fuse(self, hashed: Tensor, text: Tensor, image: Tensor, present: Tensor, ids: Tensor, id_bias: Tensor) -> Tensor:
        """Combine content and id vectors."""
        has_text, has_image = present[:, :1], present[:, 1:]
        content = self.hashed(hashed)
        content = content + has_text * self.text(text) + (1 - has_text) * self.missing[0]
        content = content + has_image * self.image(image) + (1 - has_image) * self.missing[1]
        mixed = self.norm(content + ids)
        mixed = mixed + self.deep(mixed)
        vectors = mixed / math.sqrt(mixed.shape[-1])
        return torch.cat([vectors, self.bias(mixed) + id_bias], dim=-1)

    def known(self, rows: Tensor, hidden: Tensor, hashed: Tensor, text: Tensor, image: Tensor, present: Tensor) -> Tensor:
        """Vectors of catalogue items; `hidden` is 1 where the id must not be used."""
        hidden = hidden.unsqueeze(-1)
        ids = (1 - hidden) * self.ids(rows) + hidden * self.no_id
        return self.fuse(hashed, text, image, present, ids, (1 - hidden) * self.id_bias(rows))

    def forward(self, content: Tensor, text: Tensor, image: Tensor, present: Tensor) -> Tensor:
        """Vectors from content alone."""
        return self.fuse(
            content, text, image, present, self.no_id.expand(content.shape[0], -1), torch.zeros_like(content[:, :1])
        )


class _Block(nn.Module):
    def __init__(self, dimensions: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(dimensions), nn.LayerNorm(dimensions)
        self.qkv = nn.Linear(dimensions, 3 * dimensions)
        self.out = nn.Linear(dimensions, dimensions)
        self.deep = nn.Sequential(
            nn.Linear(dimensions, 2 * dimensions), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * dimensions, dimensions)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, bias: Tensor, places: slice = slice(None)) -> Tensor:
        """Return the states at `places`, which attend to all of `x` `(batch, length, d)`.

        `bias`: added to the attention scores, `(batch, heads, places, length)`.
        """
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x[:, places]
        shape = (x.shape[0], -1, self.heads, x.shape[-1] // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in (q[:, places], k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(shape[-1]) + bias, dim=-1)
        mixed = (self.dropout(weights) @ v).transpose(1, 2).reshape(x.shape[0], -1, x.shape[-1])
        x = x + self.dropout(self.out(mixed))
        mixed = x + self.dropout(self.deep(self.norm2(x)))
        return cast("Tensor", mixed)


class UserTower(nn.Module):
    """Maps recent events to a vector whose last column is 1, so that the inner product includes the item's bias.

    The mean of the items' vectors, with a learned gain per dimension, is added to the transformer's output. So the inner
    product measures similarity from the start, and items similar to the history score high even without interactions.
    """

    fade: Tensor
    distance: Tensor
    itself: Tensor
    VARIED: ClassVar[frozenset[str]] = frozenset({"items", "events", "mask"})
    "Inputs whose second dimension is any number of places up to LENGTH, in the exported graph, too."

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        d = settings.dimensions
        self.items = nn.Linear(d + 1, d)
        self.events = nn.Linear(EVENT_WIDTH, d)
        self.start = nn.Parameter(torch.zeros(d))
        self.blocks = nn.ModuleList(_Block(d, settings.attention_heads, settings.dropout) for _ in range(settings.blocks))
        self.norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, d)
        self.dropout = nn.Dropout(settings.dropout)
        self.mean_gain = nn.Parameter(torch.full((d,), settings.resemblance))
        self.mean_weight = nn.Linear(EVENT_WIDTH, 1, bias=False)
        self.mean_rate = nn.Parameter(torch.tensor(MEAN_RATE))
        nn.init.zeros_(self.mean_weight.weight)
        place = torch.arange(LENGTH)
        distance = (place[:, None] - place[None, :]).float()
        slopes = torch.tensor([0.25 / 4**n for n in range(settings.attention_heads)])
        bias = -slopes[:, None, None] * distance
        self.register_buffer("fade", bias.masked_fill(distance < 0, -1e9), persistent=False)
        self.register_buffer("distance", distance, persistent=False)
        self.register_buffer("itself", torch.eye(LENGTH).mul(1e9).sub(1e9), persistent=False)

    def states(
        self, items: Tensor, events: Tensor, mask: Tensor, places: slice = slice(None), window: Tensor | None = None
    ) -> Tensor:
        """User vector after every event, or after those at `places`: `(batch, places, d + 1)`.

        Up to LENGTH places, the last of which is the newest event. `window`: number of the window that each place belongs to,
        where several share a row, `(batch, LENGTH)`. An event then attends to those of its own window only. Needs all places.
        """
        x = self.dropout(self.items(items * 8.0) + self.events(events))
        x = x * mask.unsqueeze(-1)
        length = mask.shape[1]
        bias = self.fade[:, :length, :length].unsqueeze(0) + (mask[:, None, None, :] - 1) * 1e9
        other = None if window is None else window[:, :, None] != window[:, None, :]
        if other is not None:
            bias = bias.masked_fill(other[:, None], -1e9)
        # an event always attends to itself, so that a padded row has something to attend to
        bias = torch.maximum(bias, self.itself[:length, :length])
        for block in self.blocks[:-1]:
            x = block(x, bias)
        # places attend to earlier blocks' states of all events, and to none of the last block's
        for block in self.blocks[-1:]:
            x = block(x, bias[:, :, places], places)
        if not len(self.blocks):
            x = x[:, places]
        out = self.out(self.norm(x)) + self.mean_gain * self._mean(items, events, mask, places, other)
        return torch.cat([out, torch.ones_like(out[..., :1])], dim=-1)

    def _mean(self, items: Tensor, events: Tensor, mask: Tensor, places: slice, other: Tensor | None) -> Tensor:
        """Weighted mean of the item vectors up to the events at `places`: `(…, places, d)`.

        Recent events weigh more, and a learned function of the event inputs adds to the weight. Items without a vector are
        excluded, because they would draw the mean to 0. `other`: pairs of places that belong to different windows.
        """
        vectors = items[..., :-1]
        there = mask * (vectors != 0).any(dim=-1).float()
        distance = self.distance[: mask.shape[1], : mask.shape[1]][places]
        weights = self.mean_weight(events).transpose(1, 2) - self.mean_rate.abs() * distance
        weights = weights + (there - 1)[:, None, :] * 1e9
        # future items weigh less than absent ones: without a present item the mean is 0 and leaks nothing from the future
        weights = weights.masked_fill(distance < 0 if other is None else (distance < 0) | other, -4e9)
        return torch.softmax(weights, dim=-1) @ vectors

    def forward(self, items: Tensor, events: Tensor, mask: Tensor) -> Tensor:
        """User vector after the newest event. Users without events get a learned vector."""
        last = self.states(items, events, mask, LAST)[:, -1]
        known = mask[:, -1:]
        nobody = torch.cat([self.start, torch.ones_like(self.start[:1])]).expand_as(last)
        return known * last + (1 - known) * nobody


def item_vectors(tower: ItemTower, content: Content, cold: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Vectors of the catalogue, float32 `(n, d + 1)`. Where `cold`, bool `(n,)`, from content alone: ids are untrained."""
    hidden = torch.from_numpy(cold.astype(np.float32))
    with torch.inference_mode():
        found: NDArray[np.float32] = tower.known(torch.arange(len(cold)), hidden, *content.tensors()).numpy()
    return found
