"""How much words, text and image say about what a person likes next: the weights of their cosines when items are compared.

Learned from history, since it differs between domains: what a text says of a film its poster hardly does, and of a dress its
picture says more than its name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

from models.pipeline.sources import RECENCY
from training.data import EventTable

__all__ = ["ASKED", "FEWEST", "LEAST", "content_weights"]

ASKED = 6_000
"Liked first meetings that are learned from, at most."
FEWEST = 100
"Liked first meetings below which nothing is learned: all weigh the same."
OTHERS = 100
"Items drawn beside each."
STEPS, RATE = 200, 0.05
LEAST = 0.01
"Smallest weight of what some item has: another history may say more of it."


def content_weights(table: EventTable, parts: Mapping[str, NDArray[np.float32]], seed: int = 0) -> dict[str, float]:
    """Weight of each part's cosine, the largest 1: by a softmax of the item that was liked over itself and drawn ones.

    `parts`: by name, an item's vector of length 1, or 0 where it has none, float32 `(items, d)`. What is compared with an item
    are a person's newest items before it, the newest weigh most, as retrieval by content does. Weights stay positive
    (softplus). A part that no item has weighs 1, as it says nothing. Deterministic for one seed.
    """
    rng = np.random.default_rng(seed)
    asked = _asked(table, rng)
    there = [name for name, vectors in parts.items() if vectors.any()]
    weights = dict.fromkeys(parts, 1.0)
    if len(asked) < FEWEST or len(there) < 2:
        return weights
    cosines = _cosines(asked, table.item, [parts[name] for name in there], rng)
    x, target = torch.from_numpy(cosines), torch.zeros(len(cosines), dtype=torch.long)
    raw, heat = torch.zeros(len(there), requires_grad=True), torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([raw, heat], lr=RATE)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ F.softplus(raw) * torch.exp(heat), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    found = F.softplus(raw).detach().numpy()
    for name, weight in zip(there, (found / found.max()).tolist(), strict=True):
        weights[name] = round(max(weight, LEAST), 4)
    return weights


def _asked(table: EventTable, rng: np.random.Generator) -> list[tuple[int, NDArray[np.intp]]]:
    """Numbers of liked first meetings, and those of the person's newest events before each, newest first."""
    order = np.argsort(table.user, kind="stable")
    begins = np.flatnonzero(np.diff(table.user[order], prepend=-1))
    place = np.empty(len(order), np.intp)
    place[order] = np.arange(len(order)) - np.repeat(begins, np.diff(np.append(begins, len(order))))
    liked = np.flatnonzero(table.first & table.liked & (place > 0))
    picked = np.sort(rng.permutation(liked)[:ASKED])
    at = np.empty(len(order), np.intp)
    at[order] = np.arange(len(order))
    longest = len(RECENCY)
    return [(n, order[at[n] - min(place[n], longest) : at[n]][::-1]) for n in picked.tolist()]


def _cosines(
    asked: Sequence[tuple[int, NDArray[np.intp]]],
    item: NDArray[np.int64],
    parts: Sequence[NDArray[np.float32]],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Of the item of each query, first, and of drawn ones, with the person's newest: `(q, 1 + OTHERS, parts)`."""
    out = np.zeros((len(asked), 1 + OTHERS, len(parts)), np.float32)
    for q, (n, before) in enumerate(asked):
        rows = np.append(item[n], rng.integers(0, len(parts[0]), OTHERS))
        for m, vectors in enumerate(parts):
            profile = RECENCY[: len(before)] @ vectors[item[before]]
            out[q, :, m] = vectors[rows] @ (profile / max(float(np.linalg.norm(profile)), 1e-9))
    return out
