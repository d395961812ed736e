"""Learns how well words, text and image predict a user's next liked item: weights of their cosines in item comparisons.

The weights are learned from history because they differ between domains. A film's text predicts more than its poster; a
dress's picture predicts more than its name.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from models.items.vectors import unit_rows
from models.pipeline.sources import RECENCY
from training.data.table import EventTable

__all__ = ["ASKED", "FEWEST", "LEAST", "content_weights"]

ASKED, OTHERS = 3_000, 50
"Maximum number of liked first interactions to learn from, and number of items drawn for each."
FEWEST = 100
"Minimum number of first interactions, in total and for each part. Below it nothing is learned."
STEPS, RATE = 150, 0.05
PULL = 1e-3
"L2 penalty towards equal weights, so that parts that history cannot separate get the same weight."
LEAST = 0.01
"Smallest weight of a part, because another history may support it better."


def content_weights(table: EventTable, parts: Mapping[str, NDArray[np.float32]], seed: int = 0) -> tuple[dict[str, float], int]:
    """Weight of each part's cosine, scaled so that the largest is 1, and the number of interactions learned from.

    Fitted by a softmax of the liked item over itself and drawn items. Items are drawn by popularity, so that popularity carries
    no information. Scores are computed as in content retrieval. `parts`: item vectors by name, float32 `(items, d)`, 0 where an
    item has none. Weights stay positive (softplus). A part without support in those interactions weighs LEAST. With fewer than
    FEWEST interactions all weigh 1. Deterministic for one seed.
    """
    rng = np.random.default_rng(seed)
    asked, before = _asked(table, rng)
    if len(asked) < FEWEST:
        return dict.fromkeys(parts, 1.0), len(asked)
    drawn = table.item[rng.integers(0, len(table), (len(asked), OTHERS))]
    among = np.concatenate([table.item[asked][:, None], drawn], axis=1)
    past = np.where(before >= 0, table.item[before], -1)
    cosines = _compared(among, past, list(parts.values()))
    told = np.flatnonzero((cosines != 0).any(axis=(1, 2)).sum(axis=0) >= FEWEST)
    known = (drawn[:, :, None] == np.concatenate([past, among[:, :1]], axis=1)[:, None, :]).any(axis=2)
    taken = torch.from_numpy(np.pad(known, ((0, 0), (1, 0))))
    recency = torch.from_numpy((RECENCY * (past >= 0)).astype(np.float32))
    found = _fitted(torch.from_numpy(cosines[..., told]), recency, taken)
    weights = dict.fromkeys(parts, LEAST)
    names = list(parts)
    for n, weight in zip(told.tolist(), (found / found.max(initial=LEAST)).tolist(), strict=True):
        weights[names[n]] = round(max(weight, LEAST), 4)
    return weights, len(asked)


def _asked(table: EventTable, rng: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """First interactions with items liked then or later, and the user's newest earlier events, newest first.

    Shapes `(q,)` and `(q, len(RECENCY))`, -1 where there is none. A user's first event is excluded: nothing precedes it.
    """
    order = np.argsort(table.user, kind="stable")
    begins = np.flatnonzero(np.diff(table.user[order], prepend=-1))
    at, begin = np.empty(len(order), np.intp), np.empty(len(order), np.intp)
    at[order] = np.arange(len(order))
    begin[order] = np.repeat(begins, np.diff(np.append(begins, len(order))))
    liked = np.flatnonzero(table.first & (table.labels[:, 0] > 0) & (at > begin))
    picked = np.sort(rng.permutation(liked)[:ASKED])
    places = at[picked][:, None] - 1 - np.arange(len(RECENCY))
    before = np.where(places >= begin[picked][:, None], order[np.maximum(places, 0)], -1)
    return picked, before


def _compared(among: NDArray[np.int64], past: NDArray[np.int64], parts: list[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Cosine of each item in `among` `(q, c)` with each in `past` `(q, h)`, by part: float32 `(q, c, h, parts)`.

    -1 in `past` marks no item. The cosine is 0 where either item lacks the part.
    """
    (q, c), h, m = among.shape, past.shape[1], len(parts)
    cosines = np.zeros((q, c, h, m), np.float32)
    for n in range(q):
        for k, vectors in enumerate(parts):
            one, other = unit_rows(vectors[among[n]]), unit_rows(vectors[past[n]] * (past[n] >= 0)[:, None])
            cosines[n, :, :, k] = one @ other.T
    return cosines


def _fitted(x: Tensor, recency: Tensor, taken: Tensor) -> NDArray[np.float32]:
    """Fit a weight per part so that the first of each query's items scores highest. Items in `taken` are masked."""
    raw, temperature = torch.zeros(x.shape[-1], requires_grad=True), torch.tensor(1.0, requires_grad=True)
    optimizer, target = torch.optim.Adam([raw, temperature], lr=RATE), torch.zeros(len(x), dtype=torch.long)
    for _ in range(STEPS):
        scores = _scores(x, recency, F.softplus(raw))
        logits = (scores * torch.exp(temperature)).masked_fill(taken, -1e9)
        loss = F.cross_entropy(logits, target) + PULL * (raw**2).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found: NDArray[np.float32] = F.softplus(raw).detach().numpy()
    return found


def _scores(x: Tensor, recency: Tensor, weights: Tensor) -> Tensor:
    """Scores of each query's items, `(q, c)`. Their order is that of content retrieval in a release with these weights.

    An item's vector concatenates its parts, each of length 1 or 0 and scaled by the root of its weight. A user's vector is the
    mean over the newest items.
    """
    return ((x @ weights) @ recency.unsqueeze(-1)).squeeze(-1) / recency.sum(dim=1, keepdim=True)
