"""Filters: they remove candidates that must not be shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
from models.pipeline.kernels import candidates as kernels
from models.pipeline.scratch import SCRATCH
from models.pipeline.stages import Filter

__all__ = ["FILTERS", "CategoryFilter", "ExcludedFilter", "SeenFilter", "UnavailableFilter", "UnpublishedFilter"]


class UnavailableFilter:
    """Drops items that are unavailable, deleted, or not in the catalogue."""

    name = "unavailable"

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:  # noqa: ARG002
        """Keep available items."""
        kept: NDArray[np.bool_] = items.available[candidates.item_row]
        return kept


class UnpublishedFilter:
    """Drops items that are not published yet, including candidates that a request names itself."""

    name = "unpublished"

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:
        """Keep published items, and items without a time of publication."""
        kept: NDArray[np.bool_] = items.published_ms[candidates.item_row] <= queries.now_ms
        return kept


class SeenFilter:
    """Drops items that the user interacted with, unless the request allows repeats.

    It looks items up in Bloom filters: without repeats it may hide an unseen item, but never keeps a seen one.
    """

    name = "seen"

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:
        """Keep items that are not in the user's seen-set, and all of a request that keeps seen ones."""
        users = queries.users
        held = kernels.seen(users.seen_tiers, users.seen_starts, items.bloom, candidates.query_row, candidates.item_row)
        kept: NDArray[np.bool_] = ~held
        if queries.repeats.any():
            kept |= queries.repeats[candidates.query_row]
        return kept


class ExcludedFilter:
    """Drops items that the request excludes."""

    name = "excluded"

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:  # noqa: ARG002
        """Keep items that are not excluded."""
        out = queries.excluded
        if not len(out.values):
            return np.ones(len(candidates), np.bool_)
        excluded = kernels.among(
            out.starts, out.values, candidates.query_row, candidates.item_row, *SCRATCH.marks(queries.size, len(queries))
        )
        kept: NDArray[np.bool_] = ~excluded
        return kept


class CategoryFilter:
    """Drops items outside the categories that the request asks for."""

    name = "category"

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:
        """Keep items with at least one of the categories."""
        if not queries.restricted.any():
            return np.ones(len(candidates), np.bool_)
        asked, query_row = queries.categories, candidates.query_row
        inside = kernels.in_categories(asked.starts, asked.values, query_row, candidates.item_row, items.category_ids)
        kept: NDArray[np.bool_] = inside | ~queries.restricted[query_row]
        return kept


FILTERS: tuple[type[Filter], ...] = (UnavailableFilter, UnpublishedFilter, SeenFilter, ExcludedFilter, CategoryFilter)
"The filters of the pipeline, in the order in which they run. Each counts only candidates that passed the earlier ones."
