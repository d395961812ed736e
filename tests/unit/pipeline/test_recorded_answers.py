"""The pipeline gives the recorded answers to ten thousand requests; only items that tie may exchange places."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from recorded import REQUESTS, answers, world_of

from models.pipeline.filters import ExcludedFilter, SeenFilter
from models.pipeline.sources import CovisitationSource, FreshSource
from models.state.rows import UserRecord
from training.replay.world import SimulatedWorker

RECORDED = Path(__file__).with_name("recorded.npz")
TIE = 1e-5
"Scores that differ by less may be exchanged, because their order depends on the rounding of sums."

Served = tuple[SimulatedWorker, dict[str, UserRecord | None]]


@pytest.fixture(scope="module")
def served() -> Served:
    return world_of()


def check(served: Served, first: int) -> None:
    """Compare the answers to the first requests with the recorded ones."""
    with np.load(RECORDED, allow_pickle=False) as recorded:
        items, scores = recorded["items"][:first], recorded["scores"][:first]
    for n, slate in enumerate(islice(answers(*served), first)):
        assert slate.degraded == ()
        expected = [f"i{row}" for row in items[n].tolist() if row >= 0]
        assert len(slate.items) == len(expected)
        for item, name, score in zip(slate.items, expected, scores[n].tolist(), strict=False):
            assert item.score == pytest.approx(score, abs=TIE)
            if item.item_id != name:
                # it changed places with an item of the slate, or with one that missed the last place
                others = [other.score for other in slate.items if other.item_id == name] or [slate.items[-1].score]
                assert others[0] == pytest.approx(item.score, abs=TIE), f"request {n}"


def test_answers_equal_the_recorded_ones(served: Served) -> None:
    check(served, REQUESTS)


def _shows_seen_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeenFilter, "keep", lambda _self, _queries, candidates, _items: np.ones(len(candidates), np.bool_))


def _ignores_exclusions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ExcludedFilter, "keep", SeenFilter.keep)


def _retrieves_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    retrieve = CovisitationSource.retrieve
    monkeypatch.setattr(CovisitationSource, "retrieve", lambda self, queries, items: retrieve(type(self)(3), queries, items))


def _weighs_sources_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FreshSource, "name", "popular")


@pytest.mark.parametrize("breaks", [_shows_seen_items, _ignores_exclusions, _retrieves_fewer, _weighs_sources_otherwise])
def test_a_build_that_answers_otherwise_is_found(
    served: Served, breaks: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    with pytest.raises(AssertionError):
        check(served, 500)
