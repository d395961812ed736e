"""Two-tower retrieval: a sequence model reads the recent history, item vectors fuse id and content.

The user tower is a causal transformer (Kang & McAuley 2018) whose attention fades with distance (Press et al. 2022), so
that training on windows and serving on the newest events are the same function. The item tower hides ids at random in
training: an item that nobody met yet has a vector from its content alone. Loss: softmax over the whole catalogue, or over
sampled items with the sampling correction (Yi et al. 2019) above FULL_SOFTMAX items.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor, nn

from models.items import TEXT_DIMENSIONS
from models.sequences import EVENT_WIDTH, LENGTH, event_inputs
from training.data import EventTable

__all__ = ["Content", "ItemTower", "TowerSettings", "UserTower", "item_vectors", "train_towers"]

FULL_SOFTMAX = 20_000
SAMPLED = 8_192
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class TowerSettings:
    """How the towers are built and trained."""

    dimensions: int = 64
    blocks: int = 2
    attention_heads: int = 2
    epochs: int = 8
    batch: int = 32
    "Windows per step."
    rate: float = 2e-3
    dropout: float = 0.3
    weight_decay: float = 0.05
    hidden_ids: float = 0.2
    "Share of items whose id is hidden in a step."
    other: float = 0.1
    "Weight of a first meeting that is not liked; a liked one weighs 1."
    seed: int = 0


@dataclass(slots=True)
class Content:
    """What is known of n items beside their ids."""

    hashed: NDArray[np.float32]
    "Hashed words `(n, TEXT_DIMENSIONS)`."
    text: NDArray[np.float32]
    image: NDArray[np.float32]
    present: NDArray[np.float32]
    "Has text, has image: `(n, 2)`."

    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """In the order of the item tower's arguments."""
        return self.hashed, self.text, self.image, self.present

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """As tensors."""
        return tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in self.arrays())  # type: ignore[return-value]


class ItemTower(nn.Module):
    """Content, and the id's embedding where it is known and not hidden, to a vector with a bias in its last column."""

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

    def fuse(self, hashed: Tensor, text: Tensor, image: Tensor, present: Tensor, ids: Tensor, id_bias: Tensor) -> Tensor:
        """Vectors from content and id vectors."""
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

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`bias`: added to the attention's scores, `(batch, heads, length, length)`."""
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        shape = (x.shape[0], -1, self.heads, x.shape[-1] // self.heads)
        q, k, v = (part.reshape(shape).transpose(1, 2) for part in (q, k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(shape[-1]) + bias, dim=-1)
        mixed = (self.dropout(weights) @ v).transpose(1, 2).reshape(x.shape[0], -1, x.shape[-1])
        x = x + self.dropout(self.out(mixed))
        mixed = x + self.dropout(self.deep(self.norm2(x)))
        return cast("Tensor", mixed)


class UserTower(nn.Module):
    """Recent events to a vector; its last column is 1, which lets the item's bias in."""

    fade: Tensor

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
        place = torch.arange(LENGTH)
        distance = (place[:, None] - place[None, :]).float()
        slopes = torch.tensor([0.25 / 4**n for n in range(settings.attention_heads)])
        bias = -slopes[:, None, None] * distance
        self.register_buffer("fade", bias.masked_fill(distance < 0, -1e9), persistent=False)

    def states(self, items: Tensor, events: Tensor, mask: Tensor) -> Tensor:
        """A vector after every event: `(batch, LENGTH, d + 1)`."""
        x = self.dropout(self.items(items * 8.0) + self.events(events))
        x = x * mask.unsqueeze(-1)
        bias = self.fade.unsqueeze(0) + (mask[:, None, None, :] - 1) * 1e9
        # an event always sees itself, so that a padded row has something to look at
        bias = torch.maximum(bias, torch.eye(LENGTH, device=mask.device).mul(1e9).sub(1e9))
        for block in self.blocks:
            x = block(x, bias)
        out = self.out(self.norm(x))
        return torch.cat([out, torch.ones_like(out[..., :1])], dim=-1)

    def forward(self, items: Tensor, events: Tensor, mask: Tensor) -> Tensor:
        """The vector after the newest event; of a person without events, a vector learned for that case."""
        last = self.states(items, events, mask)[:, -1]
        known = mask[:, -1:]
        nobody = torch.cat([self.start, torch.ones_like(self.start[:1])]).expand_as(last)
        return known * last + (1 - known) * nobody


@dataclass(slots=True)
class _Windows:
    """Windows over people's histories: `rows` are event numbers, -1 for padding, oldest first."""

    rows: NDArray[np.int64]
    scored: NDArray[np.bool_]
    "Where the prediction of the next event counts."
    following: NDArray[np.int64]
    "Number of the next event of the same person, -1 at the end."


def _windows(table: EventTable) -> _Windows:
    order = np.lexsort((np.arange(len(table)), table.user))
    bounds = np.flatnonzero(np.diff(table.user[order], prepend=-1, append=-1))
    rows, scored, following = [], [], []
    for start, end in pairwise(bounds):
        mine = order[start:end]
        for stop in range(len(mine), 0, -LENGTH // 2):
            begin = max(0, stop - LENGTH)
            part = mine[begin:stop]
            pad = LENGTH - len(part)
            rows.append(np.concatenate([np.full(pad, -1), part]))
            after = mine[begin + 1 : stop + 1]
            following.append(np.concatenate([np.full(pad, -1), after, np.full(len(part) - len(after), -1)]))
            # each event is predicted once: by the window in which it has the longest history before it
            scored.append(np.arange(LENGTH) >= (LENGTH // 2 if begin else 0))
            if begin == 0:
                break
    shape = (len(rows), LENGTH)
    return _Windows(
        np.asarray(rows, np.int64).reshape(shape),
        np.asarray(scored, np.bool_).reshape(shape),
        np.asarray(following, np.int64).reshape(shape),
    )


def _inputs(table: EventTable) -> NDArray[np.float32]:
    previous = np.full(len(table), -1)
    newest: dict[int, int] = {}
    for n, user in enumerate(table.user.tolist()):
        previous[n] = newest.get(user, -1)
        newest[user] = n
    gaps = np.where(previous >= 0, table.time_ms - table.time_ms[previous], 0)
    return event_inputs(table.slot, table.value, table.has_value, gaps, table.liked)


def train_towers(
    table: EventTable, content: Content, settings: TowerSettings, progress: Progress | None = None
) -> tuple[UserTower, ItemTower]:
    """Train both towers on all events of `table`; deterministic for one seed and one number of threads."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    n_items = len(content.hashed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tensors = tuple(t.to(device) for t in content.tensors())
    user_tower = UserTower(settings).to(device)
    item_tower = ItemTower(n_items, content.text.shape[1], content.image.shape[1], settings.dimensions).to(device)
    parameters = [*user_tower.parameters(), *item_tower.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=settings.weight_decay)
    windows, inputs = _windows(table), torch.from_numpy(_inputs(table))
    item = torch.from_numpy(table.item)
    weight = np.where(table.first, np.where(table.labels[:, 0] > 0, 1.0, settings.other), 0.0).astype(np.float32)
    weights = torch.from_numpy(weight)
    popularity = np.bincount(table.item, minlength=n_items) + 1.0
    with torch.no_grad():
        item_tower.id_bias.weight[:, 0] = torch.from_numpy(np.log(popularity / popularity.mean()) * 0.5).float()
    steps = max(1, -(-len(windows.rows) // settings.batch)) * settings.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=settings.rate, total_steps=steps, pct_start=0.1)
    sampled = n_items > FULL_SOFTMAX
    step = 0
    for _ in range(settings.epochs):
        for part in np.array_split(rng.permutation(len(windows.rows)), max(1, -(-len(windows.rows) // settings.batch))):
            rows, following = windows.rows[part], windows.following[part]
            target_events = np.where(windows.scored[part] & (following >= 0) & (rows >= 0), following, -1)
            wanted = torch.from_numpy(np.where(target_events >= 0, weight[np.maximum(target_events, 0)], 0)).to(device)
            places = wanted > 0
            step += 1
            if progress is not None:
                progress(step, steps)
            if not bool(places.any()):
                schedule.step()
                continue
            targets = item[torch.from_numpy(np.maximum(target_events, 0))].to(device)[places]
            if sampled:
                pool = np.unique(
                    np.concatenate([targets.cpu().numpy(), table.item[rows[rows >= 0]], rng.integers(0, n_items, SAMPLED)])
                )
            else:
                pool = np.arange(n_items)
            pool_rows = torch.from_numpy(pool).to(device)
            hidden = (torch.rand(len(pool), device=device) < settings.hidden_ids).float()
            vectors = item_tower.known(pool_rows, hidden, *(t[pool_rows] for t in tensors))
            position = torch.full((n_items + 1,), 0, dtype=torch.long, device=device)
            position[pool_rows] = torch.arange(len(pool), device=device)
            there = torch.from_numpy(rows >= 0).to(device)
            history = position[item[torch.from_numpy(np.maximum(rows, 0))].to(device)]
            events = inputs[torch.from_numpy(np.maximum(rows, 0))].to(device)
            states = user_tower.states(vectors[history] * there.unsqueeze(-1), events, there.float())
            users = F.dropout(states[places], settings.dropout, training=True)
            logits = users @ vectors.T
            if sampled:
                # items of the batch come more often than uniform ones: take the logarithm of their share back
                share = torch.full((len(pool),), SAMPLED / n_items, device=device)
                share[position[targets]] = 1.0
                logits = logits - torch.log(share)
            loss = F.cross_entropy(logits, position[targets], reduction="none", label_smoothing=0.0)
            nobody = torch.cat([user_tower.start, torch.ones(1, device=device)]) @ vectors.T
            general = -torch.log_softmax(nobody, dim=-1)[position[targets]]
            mine = weights.new_tensor(0) + wanted[places]
            total = ((loss + 0.1 * general) * mine).sum() / mine.sum()
            optimizer.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
    return user_tower.cpu().eval(), item_tower.cpu().eval()


def item_vectors(tower: ItemTower, content: Content, hide: bool = False) -> NDArray[np.float32]:
    """Vectors of the whole catalogue, with ids unless `hide`: float32 `(n, d + 1)`."""
    n = len(content.hashed)
    with torch.inference_mode():
        found: NDArray[np.float32] = tower.known(torch.arange(n), torch.full((n,), float(hide)), *content.tensors()).numpy()
    return found
