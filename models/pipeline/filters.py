"""Filters: they remove candidates that must not be shown."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Candidates, Queries
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
    """Drops items that the user interacted with, by Bloom filters: it may hide an unseen item, but never shows a seen one."""

    name = "seen"

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:
        """Keep items that are not in the user's seen-set."""
        keep = np.ones(len(candidates), np.bool_)
        spans = candidates.spans(len(queries))
        for n, user in enumerate(queries.users):
            if user is not None:
                span = slice(spans[n], spans[n + 1])
                keep[span] = ~user.seen.contains_many(items.bloom[candidates.item_row[span]])
        return keep


class ExcludedFilter:
    """Drops items that the request excludes."""

    name = "excluded"

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:  # noqa: ARG002
        """Keep items that are not excluded."""
        keep = np.ones(len(candidates), np.bool_)
        spans = candidates.spans(len(queries))
        for n, rows in enumerate(queries.excluded):
            if len(rows):
                span = slice(spans[n], spans[n + 1])
                keep[span] = ~np.isin(candidates.item_row[span], rows)
        return keep


class CategoryFilter:
    """Drops items outside the categories that the request asks for."""

    name = "category"

    def keep(self, queries: Queries, candidates: Candidates, items: ItemStore) -> NDArray[np.bool_]:
        """Keep items with at least one of the categories."""
        keep = np.ones(len(candidates), np.bool_)
        spans = candidates.spans(len(queries))
        for n, request in enumerate(queries.requests):
            if request.categories:
                span = slice(spans[n], spans[n + 1])
                of_item = items.category_ids[candidates.item_row[span]]
                keep[span] = np.isin(of_item, queries.categories[n]).any(axis=1)
        return keep


FILTERS: tuple[type[Filter], ...] = (UnavailableFilter, UnpublishedFilter, SeenFilter, ExcludedFilter, CategoryFilter)
"The filters of the pipeline, in the order in which they run. Each counts only candidates that passed the earlier ones."
