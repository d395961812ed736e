"""Population stability index: how far one distribution is from another, and how far it would be by chance.

Siddiqi, Credit Risk Scorecards (2006), gives the index and its customary bounds: below 0.1 a distribution is stable, above 0.25
it has moved. Yurdakul, Statistical Properties of Population Stability Index (2018), gives its distribution under equal
populations: (1/n + 1/m) times chi-squared with one degree of freedom less than there are bins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

__all__ = ["chance_bound", "edges_of", "stability_index"]

LEVEL = 0.999
"Share of equal distributions whose index is below `chance_bound`."
FLOOR = 0.5
"Events that an empty bin counts as, in the smaller of both samples: the logarithm of an empty bin would be infinite."


def stability_index(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Index of counts by bin, `(…, bins)` each: `(…)`, at least 0, and 0 where the shares are equal or a sample is empty.

    It does not fall when events move further in the direction in which the distribution has moved.
    """
    n, m = (counts.sum(axis=-1, keepdims=True) for counts in (before, after))
    least = FLOOR / np.maximum(np.minimum(n, m), 1.0)
    p, q = (np.maximum(counts / np.maximum(of, 1.0), least) for counts, of in ((before, n), (after, m)))
    found = ((q - p) * np.log(q / p)).sum(axis=-1)
    return np.where((np.minimum(n, m) > 0)[..., 0], found, 0.0)


def chance_bound(before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
    """Index that equal distributions exceed once in 1,000 samples of these sizes: `(…)`. Counts as in `stability_index`.

    Events count as independent; those of one user are not, so that the index by chance is somewhat larger.
    """
    bins = np.maximum(((before + after) > 0).sum(axis=-1), 2)
    sizes = (1.0 / np.maximum(counts.sum(axis=-1), 1.0) for counts in (before, after))
    bound: NDArray[np.float64] = np.asarray(chi2.ppf(LEVEL, bins - 1)) * sum(sizes)
    return bound


def edges_of(values: NDArray[np.float64], bins: int) -> NDArray[np.float64]:
    """Bounds of at most `bins` bins that hold about equally many of the finite `values`: ascending and distinct."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return np.zeros(0)
    return np.unique(np.quantile(finite, np.arange(1, bins) / bins, method="lower"))
