"""Weights of the light score, which selects the candidates for the ranker."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray

__all__ = ["fit_light"]

FEWEST = 100
"Minimum number of queries; with fewer, the weights stay the defaults."


def fit_light(scores: NDArray[np.float32], sources: list[str], default: dict[str, float]) -> dict[str, float]:
    """Fit weights of the sources' normalised scores that rank the liked item highest, by a softmax over a query's candidates.

    `scores`: `(q, c, sources)`, 0 where a source did not return the candidate. The liked item is the first candidate of each
    query. With fewer than FEWEST queries the defaults are returned.
    """
    if len(scores) < FEWEST:
        return dict(default)
    x, liked = torch.from_numpy(scores), torch.zeros(len(scores), dtype=torch.int64)
    raw = torch.full((len(sources),), 0.5, requires_grad=True)
    temperature = torch.tensor(1.0, requires_grad=True)
    optimizer = torch.optim.Adam([raw, temperature], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ F.softplus(raw) * torch.exp(temperature), liked)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    weights = F.softplus(raw).detach()
    weights = weights / weights.max()
    return {name: round(float(w), 4) for name, w in zip(sources, weights.tolist(), strict=True)}
