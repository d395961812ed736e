"""Metrics of ranked lists and of probabilities, with intervals of their means. All vectorised, deterministic for one seed.

A ranked list of one query is a row of `hits`: whether the item at each rank is relevant, best first, bool `(q, ranks)`. Shorter
lists are padded with False. `relevant` is the number of relevant items in all, int `(q,)`, listed or not. Metrics per query are
float64 `(q,)`, so that means and intervals can be taken over any subset of queries. A query without relevant items gives 0.

Definitions: Järvelin & Kekäläinen 2002 (NDCG), Buckley & Voorhees 2000 (average precision), Voorhees 1999 (reciprocal rank),
Zhou et al. 2010 (novelty as self-information), Smyth & McClave 2001 and Ziegler et al. 2005 (diversity), Herlocker et al. 2004
(coverage), Naeini et al. 2015 (expected calibration error), Mann & Whitney 1947 (AUC), Zhu et al. 2017 (GAUC), Efron &
Tibshirani 1993 (bootstrap). A test checks that the ranked ones equal `ir_measures` (trec_eval) on random runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

from training.discount import discounts

__all__ = [
    "NOTHING",
    "Interval",
    "Reliability",
    "auc",
    "auc_interval",
    "average_precision",
    "bootstrap",
    "coverage",
    "diversity",
    "expanded_bootstrap",
    "grouped_auc",
    "grouped_auc_interval",
    "ndcg_at",
    "novelty",
    "precision_at",
    "recall_at",
    "reciprocal_rank",
    "reliability",
    "self_information",
    "sign_flip_test",
]

Floats = NDArray[np.float64]
Hits = NDArray[np.bool_]


# ---- ranked lists


def recall_at(hits: Hits, relevant: NDArray[np.int64], k: int) -> Floats:
    """Share of the relevant items in the first `k`."""
    found: Floats = hits[:, :k].sum(axis=1) / np.maximum(relevant, 1)
    return found


def precision_at(hits: Hits, k: int) -> Floats:
    """Share of the first `k` ranks with a relevant item; ranks beyond the list's end have none."""
    found: Floats = hits[:, :k].sum(axis=1) / k
    return found


def ndcg_at(hits: Hits, relevant: NDArray[np.int64], k: int) -> Floats:
    """Discounted gain of the first `k`, 1 / log2(rank + 1) with ranks from 1, relative to the best order."""
    discount = discounts(np.arange(k))
    width = min(k, hits.shape[1])
    gain = hits[:, :width] @ discount[:width]
    best = np.concatenate([[0.0], np.cumsum(discount)])[np.clip(relevant, 0, k)]
    found: Floats = np.divide(gain, best, out=np.zeros(len(hits)), where=best > 0)
    return found


def average_precision(hits: Hits, relevant: NDArray[np.int64], k: int | None = None) -> Floats:
    """Mean over the relevant items of the precision at each one's rank, 0 for unlisted ones. Its mean is MAP."""
    listed = hits if k is None else hits[:, :k]
    precision = np.cumsum(listed, axis=1) / (np.arange(listed.shape[1]) + 1.0)
    found: Floats = (precision * listed).sum(axis=1) / np.maximum(relevant, 1)
    return found


def reciprocal_rank(ranks: NDArray[np.integer]) -> Floats:
    """1 / (rank + 1) of each query's item; 0 for a negative rank, which marks an unlisted item. Ranks count from 0."""
    found: Floats = np.where(ranks >= 0, 1.0 / (np.maximum(ranks, 0) + 1.0), 0.0)
    return found


# ---- lists beyond accuracy; `lists` holds item numbers, -1 beyond the end of a list: int `(q, k)`


def coverage(lists: NDArray[np.integer], n_items: int) -> float:
    """Share of the catalogue in at least one list."""
    return len(np.unique(lists[lists >= 0])) / max(n_items, 1)


def self_information(events: NDArray[np.integer]) -> Floats:
    """-log2 of each item's share of the events, from counts `(n,)`. Each count is raised by 1, because of cold items."""
    counts = events.astype(np.float64) + 1.0
    found: Floats = -np.log2(counts / max(float(counts.sum()), 1.0))
    return found


def novelty(lists: NDArray[np.integer], information: Floats) -> Floats:
    """Mean self-information, in bits, of each list's items. It is high for rarely seen items."""
    there = lists >= 0
    if not len(information):
        return np.zeros(len(lists))
    bits = np.where(there, information[np.maximum(lists, 0)], 0.0)
    found: Floats = bits.sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return found


def diversity(lists: NDArray[np.integer], vectors: NDArray[np.floating]) -> Floats:
    """Mean distance, 1 - cosine, over the pairs of each list's items. `vectors`: `(n, d)`, each of length 1 or 0.

    Two items without content (length 0) are at distance 1. A list of fewer than two items gives 0.
    """
    there = lists >= 0
    size = there.sum(axis=1)
    total = np.zeros((len(lists), vectors.shape[1]))
    own = np.zeros(len(lists))
    for place in range(lists.shape[1]):  # one column at a time, because all vectors of all lists would need much memory
        rows = vectors[np.maximum(lists[:, place], 0)] * there[:, place, None]
        total += rows
        own += (rows * rows).sum(axis=1)
    alike = (total * total).sum(axis=1) - own
    pairs = size * (size - 1.0)
    found: Floats = np.divide(pairs - alike, pairs, out=np.zeros(len(lists)), where=pairs > 0)
    return found


# ---- probabilities


@dataclass(frozen=True, slots=True)
class Reliability:
    """Predicted against observed probabilities in b bins of the predictions. Empty bins are omitted."""

    said: Floats
    "Mean predicted probability per bin, ascending: `(b,)`."
    came: Floats
    "Observed frequency per bin: `(b,)`."
    size: Floats
    "Number of predictions per bin: `(b,)`."

    @property
    def error(self) -> float:
        """Expected calibration error: mean of |said - came|, weighted by size; 0 without predictions."""
        return float((np.abs(self.said - self.came) * self.size).sum() / max(float(self.size.sum()), 1.0))


def reliability(
    said: NDArray[np.floating], came: NDArray[np.bool_], bins: int = 10, *, equal_width: bool = False
) -> Reliability:
    """Reliability in bins of equal size (as far as ties allow), or of equal width over 0..1. `said` and `came`: `(n,)`.

    Equal size suits probabilities that are mostly small; bins of equal width would put them all in the first.
    """
    probability = said.astype(np.float64)
    if equal_width:
        number = np.minimum((probability * bins).astype(np.int64), bins - 1)
    else:
        edges = np.quantile(probability, np.arange(1, bins) / bins) if len(probability) else np.zeros(0)
        number = np.searchsorted(edges, probability, side="left")
    size = np.bincount(number, minlength=bins).astype(np.float64)
    there = size > 0
    total, true = (np.bincount(number, weights, minlength=bins) for weights in (probability, came.astype(np.float64)))
    return Reliability(total[there] / size[there], true[there] / size[there], size[there])


def _ranks(scores: NDArray[np.floating]) -> Floats:
    """Ranks from 1; ties get their mean rank."""
    _, number, size = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(size)
    found: Floats = (last - (size - 1) / 2.0)[number]
    return found


def auc(scores: NDArray[np.floating], came: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties count half; NaN when only one class is present."""
    true = int(came.sum())
    false = len(came) - true
    if not true or not false:
        return float("nan")
    return float((_ranks(scores)[came].sum() - true * (true + 1) / 2.0) / (true * false))


def grouped_auc(scores: NDArray[np.floating], came: NDArray[np.bool_], groups: NDArray[np.integer]) -> float:
    """Mean AUC within groups, such as users, weighted by their size. Groups of one class are skipped. NaN without any."""
    each, size = _aucs(scores, came, groups)
    return float((each * size).sum() / size.sum()) if len(each) else float("nan")


def _aucs(scores: NDArray[np.floating], came: NDArray[np.bool_], groups: NDArray[np.integer]) -> tuple[Floats, Floats]:
    """AUC and size of each group with both classes."""
    order = np.lexsort((scores, groups))
    group, score, true = groups[order], scores[order], came[order].astype(np.float64)
    if not len(group):
        return np.zeros(0), np.zeros(0)
    starts = np.flatnonzero(np.diff(group, prepend=group[0] - 1))
    number = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(group))))
    # ties within a group get their mean rank
    fresh = np.append(True, (np.diff(score) != 0) | (np.diff(number) != 0))
    run = np.cumsum(fresh) - 1
    place = np.arange(len(group)) - starts[number] + 1.0
    mean_place = np.bincount(run, place)[run] / np.bincount(run)[run]
    size = np.bincount(number).astype(np.float64)
    hits = np.bincount(number, true)
    misses = size - hits
    says = (hits > 0) & (misses > 0)
    above = np.bincount(number, mean_place * true) - hits * (hits + 1) / 2.0
    each: Floats = above[says] / (hits[says] * misses[says])
    return each, size[says]


# ---- intervals and tests


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> list[float] | None:
        """Mean, low, high; null where the mean has no values."""
        if self.mean != self.mean:
            return None
        return [round(self.mean, 5), round(self.low, 5), round(self.high, 5)]


NOTHING = Interval(float("nan"), float("nan"), float("nan"))
"Interval of no values."
RESAMPLES = 1_000
EXPANDED_RESAMPLES = 10_000
"Number of resamples, more than usual because the expanded quantiles lie further out, where few draws are noisy."
EXACT, SIGNS = 14, 20_000
DRAWN_AT_ONCE = 200


def bootstrap(
    values: NDArray[np.floating],
    groups: NDArray[np.integer] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean of `values` `(q,)` and its percentile interval. For a paired comparison, pass the difference of each query.

    `groups` `(q,)`: units to resample, such as the user of each query. Queries of one user are alike, so resampling single
    queries would make the interval too narrow (cluster bootstrap, Cameron, Gelbach & Miller 2008). NOTHING without values.
    Deterministic.
    """
    if not len(values):
        return NOTHING
    number = np.arange(len(values)) if groups is None else np.unique(groups, return_inverse=True)[1]
    total, size = np.bincount(number, values.astype(np.float64)), np.bincount(number).astype(np.float64)
    low, high = _drawn(total, size, level, resamples, seed)
    return Interval(float(values.mean()), low, high)


def expanded_bootstrap(
    values: NDArray[np.floating], groups: NDArray[np.integer], level: float = 0.95, seed: int = 0
) -> Interval:
    """`bootstrap` for few groups. Their percentile interval is too narrow by a factor of about sqrt((n - 1) / n), and because
    the normal quantile is smaller than Student's. The quantiles are moved outwards for both (Hesterberg 2015). Deterministic.

    Raises:
        ValueError: there are fewer than two groups, so that no interval exists.
    """
    n = len(np.unique(groups))
    if n < 2:
        raise ValueError("an interval needs two groups at least")
    tail = float(ndtr(-np.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + level) / 2)))
    return bootstrap(values, groups, 1 - 2 * tail, EXPANDED_RESAMPLES, seed)


def sign_flip_test(differences: NDArray[np.floating], groups: NDArray[np.integer], seed: int = 0) -> float:
    """Probability of a sum of `differences` at least this large under random signs per group. Tests whether two systems are
    equal, with `(q,)` differences per query. All queries of a group flip together (Fisher 1935).

    Exact for at most EXACT groups that differ, otherwise from SIGNS draws. 1 where none differs. Deterministic.
    """
    totals = np.bincount(np.unique(groups, return_inverse=True)[1], differences.astype(np.float64))
    totals = totals[totals != 0]
    if not len(totals):
        return 1.0
    if len(totals) <= EXACT:
        signs = 1 - 2 * ((np.arange(2 ** len(totals))[:, None] >> np.arange(len(totals))) & 1)
        sums = signs @ totals
        return float((sums >= totals.sum() - 1e-12).mean())
    signs = 1 - 2 * np.random.default_rng(seed).integers(0, 2, (SIGNS, len(totals)), np.int8)
    return float(((signs @ totals >= totals.sum() - 1e-12).sum() + 1) / (SIGNS + 1))


def _drawn(total: NDArray[Any], size: Floats, level: float, resamples: int, seed: int) -> tuple[float, float]:
    """Interval of sum(`total`) / sum(`size`) over resampled groups."""
    rng, n = np.random.default_rng(seed), len(total)
    means = np.empty(resamples)
    for start in range(0, resamples, DRAWN_AT_ONCE):
        drawn = rng.integers(0, n, (min(DRAWN_AT_ONCE, resamples - start), n))
        means[start : start + len(drawn)] = total[drawn].sum(axis=1) / size[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def grouped_auc_interval(
    scores: NDArray[np.floating], came: NDArray[np.bool_], groups: NDArray[np.integer], level: float = 0.95, seed: int = 0
) -> Interval | None:
    """`grouped_auc` and its interval over resampled groups; None where no group has both classes."""
    each, size = _aucs(scores, came, groups)
    if not len(each):
        return None
    return Interval(float((each * size).sum() / size.sum()), *_drawn(each * size, size, level, RESAMPLES, seed))


AUC_RESAMPLES, AUC_BINS, AUC_GROUPS = 400, 256, 2_000


def auc_interval(
    scores: NDArray[np.floating], came: NDArray[np.bool_], groups: NDArray[np.integer], level: float = 0.95, seed: int = 0
) -> Interval | None:
    """`auc` and its interval over resampled groups; None where only one class is present.

    The cost is bounded. Resamples count classes in AUC_BINS bins of scores instead of sorting anew; the interval is shifted by
    the effect of binning on the full sample. More than AUC_GROUPS groups are resampled as that many random bundles.
    """
    whole = auc(scores, came)
    if whole != whole:  # noqa: PLR0124 - NaN differs from itself
        return None
    rng = np.random.default_rng(seed)
    number = np.unique(groups, return_inverse=True)[1]
    n = int(number.max()) + 1
    if n > AUC_GROUPS:
        number, n = rng.permutation(n)[number] % AUC_GROUPS, AUC_GROUPS
    place = np.searchsorted(_edges(scores, came), scores, side="left")
    width = int(place.max()) + 1
    true, false = (
        np.bincount(number[part] * width + place[part], minlength=n * width).reshape(n, width).astype(np.float32)
        for part in (came, ~came)
    )
    weights = rng.multinomial(n, np.full(n, 1 / n), AUC_RESAMPLES).astype(np.float32)
    found = _binned_auc(weights @ true, weights @ false)
    low, high = np.nanquantile(found, [(1 - level) / 2, (1 + level) / 2])
    moved = whole - float(_binned_auc(true.sum(axis=0)[None], false.sum(axis=0)[None])[0])
    return Interval(whole, max(0.0, float(low) + moved), min(1.0, float(high) + moved))


def _edges(scores: NDArray[np.floating], came: NDArray[np.bool_]) -> NDArray[np.floating]:
    """Ascending right edges of all bins but the last: half are quantiles of all scores, half of the positives' scores."""
    there = np.unique(scores)
    if len(there) <= AUC_BINS:
        return there[:-1]
    shares = np.arange(1, AUC_BINS // 2) / (AUC_BINS // 2)
    return np.unique(np.concatenate([np.quantile(scores, shares), np.quantile(scores[came], shares)]))


def _binned_auc(true: NDArray[np.float32], false: NDArray[np.float32]) -> Floats:
    """AUC of counts by bin, `(r, bins)`, ties count half: `(r,)`; NaN when only one class is present."""
    wins, losses = true.astype(np.float64), false.astype(np.float64)
    above = (wins * (np.cumsum(losses, axis=1) - losses / 2)).sum(axis=1)
    pairs = wins.sum(axis=1) * losses.sum(axis=1)
    found: Floats = np.divide(above, pairs, out=np.full(len(wins), np.nan), where=pairs > 0)
    return found
