"""The stages of a batch that has rules: the light cut keeps what they need, scores are multiplied, and slates are arranged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.kernels import order
from models.pipeline.ragged import Ragged
from models.pipeline.rules.applied import AppliedRules
from models.pipeline.selection import light_cut
from models.pipeline.stages import Selector

__all__ = ["arranged", "kept", "multiplied"]


def kept(queries: Queries, candidates: Candidates, rules: AppliedRules, items: ItemStore, light_top: int) -> Candidates:
    """Cut as `selection.light_cut` does, but also keep the slate that the rules make of the light order.

    So what a rule asks for is ranked, and slates that follow the rules are possible after the cut.
    """
    if not rules.selects:
        return light_cut(queries, candidates, light_top)
    spans = candidates.spans(len(queries)).astype(np.int64)
    ties, sizes = queries.ties, np.diff(spans)
    by_score = order.sorted_best(candidates.score, spans, sizes, candidates.item_row, ties.hashes, ties.salts)
    most = np.where(queries.retrieving, np.maximum(light_top, queries.k), sizes)
    keep = np.arange(len(by_score)) - np.repeat(spans[:-1], sizes) < np.repeat(most, sizes)
    if not keep.all():
        chosen, _, _ = _arranged(Ragged(spans, by_score), queries, candidates, rules, items)
        needed = np.zeros(len(candidates), np.bool_)
        needed[chosen.values] = True
        keep |= needed[by_score]
    return candidates.take(by_score[keep])


def multiplied(queries: Queries, candidates: Candidates, rules: AppliedRules) -> Candidates:
    """Multiply the scores by the rules' factors, and sort each query's candidates again; equal scores keep their order."""
    if not rules.scales or not len(candidates):
        return candidates
    spans = candidates.spans(len(queries))
    scores = rules.rescaled(candidates.score, candidates.query_row, candidates.item_row, spans)
    return replace(candidates, score=scores).take(order.descending(scores, spans))


def arranged(
    queries: Queries, candidates: Candidates, rules: AppliedRules, items: ItemStore, selector: Selector
) -> tuple[Ragged, NDArray[np.int64]]:
    """Return each query's slate by the rules, from the order in which `selector` would pick all candidates.

    Also returns the number of skipped pins of each query `(q, 3)`: unknown, without a candidate, and beyond the slate's end.
    """
    if not rules.selects:
        chosen = selector.select(queries, candidates, items)
        rules.placed_by = np.full(len(chosen.values), -1, np.int64)
        return chosen, np.zeros((len(queries), 3), np.int64)
    every = selector.select(replace(queries, k=np.diff(candidates.spans(len(queries))).astype(np.int64)), candidates, items)
    chosen, rules.placed_by, skipped = _arranged(every, queries, candidates, rules, items)
    return chosen, skipped


def _arranged(
    by_preference: Ragged, queries: Queries, candidates: Candidates, rules: AppliedRules, items: ItemStore
) -> tuple[Ragged, NDArray[np.int64], NDArray[np.int64]]:
    category = items.category_ids[candidates.item_row, 0]
    return rules.arranged(by_preference, candidates.item_row, category, queries.k)
