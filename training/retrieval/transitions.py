"""Transitions: how often an item follows another within a session, smoothed, and the lags that predict the next item best.

A Markov chain over items that also looks a few events back, as session-based neighbourhoods do (Ludewig and Jannach, UMUAI
2018). A weight is the smoothed share of an item's followers, so that it predicts the next item and not just a related one.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from models.release.transitions import SESSION_GAP_MS, Transitions
from training.data.table import EventTable

__all__ = ["DECAYS", "LAGS", "chosen_decay", "lags_of", "transitions"]

LAGS = 5
"Number of newest events of a session that transitions start from."
DECAYS = (0.2, 0.4, 0.6, 0.8)
"Weights of an event relative to the next newer one, among which training chooses."
COUNTED_DECAY = 0.5
"Weight of a pair of events relative to a pair that is one event closer together, when pairs are counted."
SHRINKAGE = 2.0
"Number of followers without evidence that is added to each item's: items with few followers predict little."
OTHER = 0.1
"Weight of a follower that is not liked; a liked one weighs 1."
SAMPLED = 2_000
"Maximum number of events by which a decay is judged."
K = 10


def transitions(table: EventTable, n_items: int, followers: int, lags: NDArray[np.float32]) -> Transitions:
    """Count the transitions of a table, and keep the `followers` heaviest of each item. `lags` are kept with them.

    Events are paired with each of the LAGS events before them in the same session. Two events of the same item are no
    transition. Memory: some 16 bytes for each pair.
    """
    user, item, session = _sequences(table)
    liked = table.liked[_order(table)]
    none = np.zeros(0, np.int64)
    counts = sp.csr_matrix((none.astype(np.float32), (none, none)), shape=(n_items, n_items))
    for lag in range(1, min(LAGS, len(user) - 1) + 1):
        pair = (session[lag:] == session[:-lag]) & (item[lag:] != item[:-lag])
        weight = np.float32(COUNTED_DECAY ** (lag - 1)) * np.where(liked[lag:][pair], np.float32(1), np.float32(OTHER))
        counts = counts + sp.csr_matrix((weight, (item[:-lag][pair], item[lag:][pair])), shape=(n_items, n_items))
    counts.sum_duplicates()
    total = np.asarray(counts.sum(axis=1)).ravel()
    source = np.repeat(np.arange(n_items), np.diff(counts.indptr))
    weight = (counts.data / (total[source] + np.float32(SHRINKAGE))).astype(np.float32)
    # per item the heaviest first, ties by the follower's number
    order = np.lexsort((counts.indices, -weight, source))
    rank = np.arange(len(order)) - counts.indptr[source[order]]
    order, rank = order[rank < followers], rank[rank < followers]
    index = np.full((n_items, int(rank.max(initial=0)) + 1), -1, np.int32)
    weights = np.zeros(index.shape, np.float32)
    index[source[order], rank], weights[source[order], rank] = counts.indices[order], weight[order]
    return Transitions(index, weights, lags)


def lags_of(decay: float) -> NDArray[np.float32]:
    """Return the weights of the newest LAGS events: float32, newest first."""
    return (np.float32(decay) ** np.arange(LAGS)).astype(np.float32)


def chosen_decay(found: Transitions, table: EventTable, start: int, seed: int) -> float:
    """Choose the one of DECAYS that ranks the next items best, by mean NDCG@10 over events of `table` from index `start` on.

    Events count that are a user's first interaction with an item that is liked then or soon after, and that follow another
    event of the session; SAMPLED of them. Without any it is the smallest. Items are ranked by transitions alone, without the
    user's earlier items.
    """
    order = _order(table)
    _, item, session = _sequences(table)
    asked = np.flatnonzero(
        (order >= start) & table.first[order] & (table.labels[order, 0] > 0) & (np.diff(session, prepend=-1) == 0)
    )
    asked = np.sort(np.random.default_rng(seed).permutation(asked)[:SAMPLED])
    if not len(asked):
        return DECAYS[0]
    n = len(found.index)
    there = found.index >= 0
    starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    follow = sp.csr_matrix((found.weight[there], found.index[there], starts), shape=(n, n))
    before = asked[:, None] - np.arange(1, LAGS + 1)
    mine = (before >= 0) & (session[before] == session[asked][:, None])
    query, lag = np.nonzero(mine)
    earlier = item[before[mine]]
    best, chosen = -1.0, DECAYS[0]
    for decay in DECAYS:
        weights = sp.csr_matrix((lags_of(decay)[lag], (query, earlier)), shape=(len(asked), n))
        quality = _ndcg((weights @ follow).tocsr(), item[asked], query, earlier)
        if quality > best:
            best, chosen = quality, decay
    return chosen


def _ndcg(scores: sp.csr_matrix, wanted: NDArray[np.int64], query: NDArray[np.intp], earlier: NDArray[np.int64]) -> float:
    """Mean NDCG@10 of the wanted item of each row of `scores`, without the earlier items (query, item)."""
    removed = sp.csr_matrix((np.ones(len(query), np.float32), (query, earlier)), shape=scores.shape)
    removed.data[:] = 1.0
    scores = (scores - scores.multiply(removed)).tocsr()
    mine = np.asarray(scores[np.arange(len(wanted)), wanted]).ravel()
    row = np.repeat(np.arange(len(wanted)), np.diff(scores.indptr))
    above = np.bincount(row[scores.data > mine[row]], minlength=len(wanted))
    return float(np.where((mine > 0) & (above < K), 1.0 / np.log2(above + 2.0), 0.0).mean())


def _order(table: EventTable) -> NDArray[np.intp]:
    """Rows of the table by user, in the order of time."""
    return np.argsort(table.user, kind="stable")


def _sequences(table: EventTable) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Users, items and numbers of sessions, in the order of `_order`. A session ends where a user pauses for SESSION_GAP_MS."""
    order = _order(table)
    user, time_ms = table.user[order], table.time_ms[order]
    begins = (np.diff(user, prepend=-1) != 0) | (np.diff(time_ms, prepend=0) > SESSION_GAP_MS)
    return user, table.item[order], np.cumsum(begins)
