"""Next-item validation of the towers during training, on events that they are not trained on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.release.sequences import LENGTH
from training.data.table import EventTable
from training.discount import discounts_at
from training.retrieval.fit_towers import event_columns
from training.retrieval.negatives import NEVER, first_interaction_ms
from training.retrieval.towers import Content, ItemTower, UserTower

__all__ = ["Validation"]

K = 10
BATCH = 64


class Validation:
    """Queries at liked first interactions from event `start` on: at most `most`, drawn by `seed`, with the history before each.

    `table` may hold later events than the towers are trained on; a query uses none at or after its own. Items that the user has
    interacted with are excluded, as in a slate.
    """

    def __init__(self, table: EventTable, content: Content, start: int, seed: int, most: int = 400) -> None:
        liked = start + np.flatnonzero(table.first[start:] & (table.labels[start:, 0] > 0))
        queries = np.sort(np.random.default_rng(seed).permutation(liked)[:most])
        self._content = content
        self._targets = table.item[queries]
        self._items = table.item
        self._cold = (first_interaction_ms(table.until(start), len(content.hashed)) == NEVER).astype(np.float32)
        self._inputs = event_columns(table)
        self._rows = np.full((len(queries), LENGTH), -1, np.int64)
        self._seen: list[NDArray[np.int64]] = []
        order = np.argsort(table.user, kind="stable")
        starts = np.searchsorted(table.user[order], table.user[queries])
        for n, (query, begin) in enumerate(zip(queries.tolist(), starts.tolist(), strict=True)):
            mine = order[begin : int(np.searchsorted(table.user[order], table.user[query], "right"))]
            before = mine[mine < query]
            recent = before[-LENGTH:]
            self._rows[n, LENGTH - len(recent) :] = recent
            self._seen.append(np.unique(table.item[before]))

    def __len__(self) -> int:
        return len(self._targets)

    def __call__(self, user: UserTower, item: ItemTower) -> float:
        """NDCG@10 of these towers, 0 without queries. They must be in evaluation mode. Draws no random numbers."""
        device, n_items = item.no_id.device, len(self._content.hashed)
        gains = []
        with torch.inference_mode():
            contents = (part.to(device) for part in self._content.tensors())
            cold = torch.from_numpy(self._cold).to(device)  # cold items get content-only vectors, as in a release
            vectors = item.known(torch.arange(n_items, device=device), cold, *contents)
            for begin in range(0, len(self), BATCH):
                span = slice(begin, begin + BATCH)
                scores = self._users(user, vectors, self._rows[span]) @ vectors.T
                for row, seen, target in zip(scores, self._seen[span], self._targets[span].tolist(), strict=True):
                    wanted = row[target].item()
                    row[target] = -torch.inf
                    row[torch.from_numpy(seen).to(device)] = -torch.inf
                    gains.append(_gain(int((row > wanted).sum()), int((row == wanted).sum())))
        return float(np.mean(gains)) if gains else 0.0

    def _users(self, user: UserTower, vectors: Tensor, rows: NDArray[np.int64]) -> Tensor:
        there = torch.from_numpy((rows >= 0).astype(np.float32)).to(vectors.device)
        places = np.maximum(rows, 0)
        items = vectors[torch.from_numpy(self._items[places]).to(vectors.device)] * there.unsqueeze(-1)
        events = torch.from_numpy(self._inputs[places]).to(vectors.device) * there.unsqueeze(-1)
        found: Tensor = user(items, events, there)
        return found


def _gain(better: int, equal: int) -> float:
    """Mean discount over the ranks that an item can have among `equal` others with the same score."""
    places = np.arange(better, better + equal + 1)
    return float(discounts_at(places, K).mean())
