"""The source of what rules ask for: pinned items, new items, and items that a requirement matches."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Queries, Retrieved
from models.pipeline.kernels import rules as kernels
from models.pipeline.leaders import descending
from models.pipeline.popular import Popularity, most_popular
from models.pipeline.ragged import Scored
from models.pipeline.rules.applied import AppliedRules

__all__ = ["RulesSource"]


class RulesSource:
    """Items that the rules of the batch ask for. They pass the filters as all others do. Re-ranking requests get none.

    Besides pinned items these are as many new or matching items as the slate may need after the filters: the most popular ones
    for a requirement, and those that the request draws for new items.
    """

    name = "rules"
    default_weight = 0.0
    retrieves = False

    def __init__(self) -> None:
        self._popularity = Popularity()

    def retrieve(self, queries: Queries, items: ItemStore) -> Retrieved:
        """Return the items, each with score 0. Without rules it returns nothing."""
        rules = queries.rules
        if rules is None or not queries.retrieving.any():
            return Retrieved.none()
        room = queries.k + queries.users.seen_items + queries.excluded.lengths
        found = [
            _pinned(rules, queries),
            *_new(rules, queries, items, room),
            *_required(rules, queries, items, room, self._popularity),
        ]
        joined = Retrieved.join(found)
        pairs = np.unique(joined.query_row.astype(np.int64) * queries.size + joined.item_row)
        query_row, item_row = np.divmod(pairs, max(queries.size, 1))
        return Retrieved(query_row.astype(np.int32), item_row.astype(np.int32), np.zeros(len(pairs), np.float32))


def _pinned(rules: AppliedRules, queries: Queries) -> Retrieved:
    asked = rules.active[:, rules.columns.pin_rules] & queries.retrieving[:, None] & (rules.pin_rows >= 0)
    query_row, pin = np.nonzero(asked)
    return Retrieved(query_row.astype(np.int32), rules.pin_rows[pin], np.zeros(len(pin), np.float32))


def _new(rules: AppliedRules, queries: Queries, items: ItemStore, room: NDArray[np.int64]) -> list[Retrieved]:
    found = []
    for rule in rules.columns.fresh.tolist():
        most = np.where(rules.places[:, rule] > 0, rules.places[:, rule] + room, 0)
        if not most.any():
            continue
        pool = np.flatnonzero(rules.matches(rule, queries.size) & queries.eligible).astype(np.int32)
        wanted = queries.categories
        rows, starts = kernels.draws(
            pool, most, queries.restricted, wanted.starts, wanted.values, items.category_ids, rules.hashes, rules.salts
        )
        found.append(Retrieved.of(Scored(starts, rows, np.zeros(len(rows), np.float32))))
    return found


def _required(
    rules: AppliedRules, queries: Queries, items: ItemStore, room: NDArray[np.int64], popularity: Popularity
) -> list[Retrieved]:
    found: list[Retrieved] = []
    for rule in rules.columns.requires.tolist():
        asked = rules.active[:, rule] & queries.retrieving
        if not asked.any():
            continue
        matching = np.where(rules.matches(rule, queries.size), popularity.of(queries, items), np.float32(0))
        most = rules.columns.least[rule] + room
        head = descending(matching, int(most[asked].max()))
        found.append(most_popular(queries, items, partial(np.asarray, matching), (head, matching[head]), most, asked))
    return found
