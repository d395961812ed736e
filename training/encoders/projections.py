"""From an encoder's vectors to the few dimensions that the towers read: fitted once per release, and carried by it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.items.vectors import project, rounded

__all__ = ["fit_projection", "projected"]

LEAST_SHARE = 1e-9
"Axes along which the vectors vary less than this share of the widest teach nothing: they are left out."
LEAST_WIDTH = 1e-4
"Share of the widest axis' variance below which none is widened further: noise there would drown a new item's other axes."


def fit_projection(
    vectors: NDArray[np.float32], present: NDArray[np.bool_], kept: int, flatten: float = 0.0
) -> NDArray[np.float32]:
    """Centre, turn to the principal axes, scale to mean square 1: float32 `(d + 1, kept)`, read by `items.vectors.project`.

    `vectors`: float32 `(n, d)`, as they come over the topic; `present`: where there are any, bool `(n,)`. Zeros without any.
    `flatten`: how far the axes are brought to one width, 0 (as they are) to 1 (all alike, whitened).
    """
    d = vectors.shape[1]
    out = np.zeros((d + 1, kept), np.float32)
    known = rounded(vectors[present]).astype(np.float64)
    if not len(known):
        return out
    mean = known.mean(axis=0)
    centred = known - mean
    size, axes = np.linalg.eigh(centred.T @ centred)
    most = min(kept, d)
    size, axes = size[::-1][:most], axes[:, ::-1][:, :most]
    # the sign of an axis is arbitrary: fix it, so that the same data gives the same release
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(most)])
    # an axis that no item of training varies along would give new items numbers that nothing taught the towers to read
    axes[:, size <= LEAST_SHARE * max(float(size[0]), 1e-12)] = 0.0
    axes = axes * np.maximum(size / max(float(size[0]), 1e-12), LEAST_WIDTH) ** (-flatten / 2)
    scale = max(float(np.sqrt(((centred @ axes) ** 2).mean())), 1e-9)
    out[:-1, :most] = axes / scale
    out[-1, :most] = -(mean @ axes) / scale
    return out


def projected(vectors: NDArray[np.float32], present: NDArray[np.bool_], projection: NDArray[np.float32]) -> NDArray[np.float32]:
    """What the towers read of `vectors`, zeros where missing: float32 `(n, kept)`; the same numbers as a worker computes."""
    out = np.zeros((len(vectors), projection.shape[1]), np.float32)
    out[present] = project(rounded(vectors[present]), projection)
    return out
