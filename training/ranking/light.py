"""Weights of the light score, which selects the candidates for the ranker."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

__all__ = ["fit_light", "gain_of"]

FEWEST = 100
"Minimum number of queries; with fewer, the weights stay the defaults."


def fit_light(scores: NDArray[np.float32], sources: list[str], default: dict[str, float]) -> dict[str, float]:
    """Fit weights of the sources' normalised scores that rank the liked item highest, by a softmax over a query's candidates.

    `scores`: `(q, c, sources)`, 0 where a source did not return the candidate. The liked item is the first candidate of each
    query. With fewer than FEWEST queries the defaults are returned.
    """
    if len(scores) < FEWEST:
        return dict(default)
    scale = _fitted(scores)
    weights = scale / scale.max()
    return {name: round(float(w), 4) for name, w in zip(sources, weights.tolist(), strict=True)}


def gain_of(column: int, scores: NDArray[np.float32]) -> tuple[float, float]:
    """Return how much less the light score's loss (nats per query) is with the source of this column than without it.

    `scores` as for `fit_light`. Two halves of the queries are each judged by weights that were fitted on the other one. Also
    returns the standard error. With fewer than 2 * FEWEST queries the gain is 0 and the error infinite.
    """
    if len(scores) < 2 * FEWEST:
        return 0.0, math.inf
    gains = []
    for half in (0, 1):
        learn, judge = scores[1 - half :: 2], scores[half::2]
        gains.append(_losses(_without(judge, column), _fitted(_without(learn, column))) - _losses(judge, _fitted(learn)))
    every = torch.cat(gains)
    return float(every.mean()), float(every.std() / math.sqrt(len(every)))


def _without(scores: NDArray[np.float32], column: int) -> NDArray[np.float32]:
    left = scores.copy()
    left[..., column] = 0.0
    return left


def _losses(scores: NDArray[np.float32], scale: torch.Tensor) -> torch.Tensor:
    """Negative log probability of the liked item, per query."""
    liked = torch.zeros(len(scores), dtype=torch.int64)
    return F.cross_entropy(torch.from_numpy(scores) @ scale, liked, reduction="none")


def _fitted(scores: NDArray[np.float32]) -> torch.Tensor:
    """Fit the weights, which include the softmax's temperature: `(sources,)`."""
    x, liked = torch.from_numpy(scores), torch.zeros(len(scores), dtype=torch.int64)
    raw = torch.full((scores.shape[-1],), 0.5, requires_grad=True)
    temperature = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([raw, temperature], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ F.softplus(raw) * torch.exp(temperature), liked)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return (F.softplus(raw) * torch.exp(temperature)).detach()
