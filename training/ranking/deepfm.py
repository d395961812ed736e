"""The DeepFM ranker (Guo et al., IJCAI 2017): a factorization machine and a deep part over the same field embeddings."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.ranking.base import Ranker
from training.recipe import RankerSettings

__all__ = ["DeepFM"]

BEYOND = 3e38
"A bound above every feature value: all values lie below it."


class DeepFM(Ranker):
    """DeepFM with one field per feature.

    A feature's embedding is that of its value's interval, plus its standardised value times a vector. The first fits step
    effects, the second linear effects. The products of all pairs of fields, summed, are the factorization machine's part
    (Rendle 2010); each head weighs its dimensions. The deep part reads the concatenated fields.
    """

    bounds: Tensor

    def __init__(self, features: int, heads: int, settings: RankerSettings) -> None:
        super().__init__(features, heads)
        k, buckets = settings.embedding, settings.buckets
        self._buckets = buckets
        self.bounds = nn.Parameter(torch.full((features, buckets - 1), BEYOND), requires_grad=False)
        "Upper ends of each feature's intervals: `(features, buckets - 1)`."
        self.table = nn.Embedding(features * buckets, k)
        self.slope = nn.Parameter(torch.randn(features, k) * 0.05)
        self.linear = nn.Linear(features, heads)
        self.steps = nn.Embedding(features * buckets, heads)
        self.pairs = nn.Linear(k, heads)
        inputs = features * k + features
        self.deep = nn.Sequential(
            nn.Linear(inputs, settings.width),
            nn.GELU(),
            nn.Dropout(settings.dropout),
            nn.Linear(settings.width, settings.width // 2),
            nn.GELU(),
            nn.Linear(settings.width // 2, heads),
        )
        self.register_buffer("first", torch.arange(features) * buckets, persistent=False)
        nn.init.normal_(self.table.weight, std=0.05)
        nn.init.zeros_(self.steps.weight)
        nn.init.ones_(self.pairs.weight)
        self._add_output_parameters()

    first: Tensor
    "Index of each feature's first interval: `(features,)`."

    def fit(self, seen: NDArray[np.float32]) -> None:
        """Fit mean and deviation of the features, and intervals that hold equal shares of their values."""
        super().fit(seen)
        shares = np.arange(1, self._buckets) / self._buckets
        bounds = np.quantile(seen, shares, axis=0).T.astype(np.float32)
        # empty intervals are removed; a feature that never varied keeps a single one
        bounds[:, 1:][bounds[:, 1:] == bounds[:, :-1]] = BEYOND
        bounds[seen.std(axis=0) < 1e-3] = BEYOND
        with torch.no_grad():
            self.bounds.copy_(torch.from_numpy(np.sort(bounds, axis=1)))

    def logits(self, features: Tensor) -> Tensor:
        """Uncalibrated logits."""
        standard = self.standard(features)
        # raw values against raw bounds: no arithmetic whose rounding could differ between torch and ONNX
        interval = (features.unsqueeze(-1) > self.bounds).long().sum(dim=-1) + self.first
        fields = self.table(interval) + standard.unsqueeze(-1) * self.slope
        pairs = 0.5 * (fields.sum(dim=-2) ** 2 - (fields**2).sum(dim=-2))
        deep = self.deep(torch.cat([fields.flatten(-2), standard], dim=-1))
        total: Tensor = self.linear(standard) + self.steps(interval).sum(dim=-2) + self.pairs(pairs) + deep
        return total
