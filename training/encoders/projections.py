"""Projections from encoder vectors to the few dimensions that the towers read, fitted once and stored in the release."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.items.vectors import project, rounded

__all__ = ["fit_projection", "projected"]

LEAST_SHARE = 1e-9
"Smallest variance of an axis, as a share of the widest one's. Axes below it carry no information and are dropped."
LEAST_WIDTH = 1e-4
"Variance, as a share of the widest axis', below which widening stops. Wider, their noise would drown a new item's others."


def fit_projection(
    vectors: NDArray[np.float32], present: NDArray[np.bool_], kept: int, flatten: float = 0.0
) -> NDArray[np.float32]:
    """Centre, rotate to principal axes, scale to mean square 1: float32 `(d + 1, kept)`, for `items.vectors.project`.

    `vectors`: float32 `(n, d)`, as published on the topic; `present`: mask of existing vectors, bool `(n,)`. Without any, the
    result is zeros. `flatten`: equalisation of the axes' variances, from 0 (none) to 1 (all equal, whitened).
    """
    d = vectors.shape[1]
    out = np.zeros((d + 1, kept), np.float32)
    known = rounded(vectors[present]).astype(np.float64)
    if not len(known):
        return out
    mean = known.mean(axis=0)
    centred = known - mean
    size, axes = _principal(centred)
    most = min(kept, len(size))
    size, axes = size[:most], axes[:, :most]
    # the sign of an axis is arbitrary: fix it, so that the same data gives the same release
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(most)])
    # along an axis without variance in training, new items would give the towers inputs that they never learned
    axes[:, size <= LEAST_SHARE * max(float(size[0]), 1e-12)] = 0.0
    axes = axes * np.maximum(size / max(float(size[0]), 1e-12), LEAST_WIDTH) ** (-flatten / 2)
    # also over the columns that fewer items than dimensions leave at 0, so that the scale does not depend on their number
    scale = max(float(np.sqrt(((centred @ axes) ** 2).sum() / (len(known) * min(kept, d)))), 1e-9)
    out[:-1, :most] = axes / scale
    out[-1, :most] = -(mean @ axes) / scale
    return out


def _principal(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of squares along the principal axes of `(n, d)`, widest first: `(min(n, d),)`, and the axes: `(d, min(n, d))`."""
    if len(centred) < centred.shape[1]:  # the covariance would be larger than what it is made of
        _, lengths, rows = np.linalg.svd(centred, full_matrices=False)
        return lengths**2, rows.T
    size, axes = np.linalg.eigh(centred.T @ centred)
    return size[::-1], axes[:, ::-1]


def projected(vectors: NDArray[np.float32], present: NDArray[np.bool_], projection: NDArray[np.float32]) -> NDArray[np.float32]:
    """Project `vectors` for the towers, zeros where missing: float32 `(n, kept)`. A worker computes the same numbers."""
    out = np.zeros((len(vectors), projection.shape[1]), np.float32)
    out[present] = project(rounded(vectors[present]), projection)
    return out
