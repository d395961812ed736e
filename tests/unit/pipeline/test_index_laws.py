"""The index agrees with brute force: exactly below a size, with the stated recall above; it never returns excluded items."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.exact import exact_top
from models.pipeline.kernels.signals import dots
from models.pipeline.ties import Ties
from models.release.nearest import IndexSettings, VectorIndex
from models.release.serving import ServingModel
from schemas.errors import ConfigError
from schemas.records import Item
from training.release.learned import Learned

few = settings(max_examples=60, deadline=None)
N, D = 60_000, 33


ASKERS = np.arange(100, dtype=np.uint64)


def ties_of(n: int, q: int) -> Ties:
    """Tie-break orders of q askers over n items."""
    return Ties(np.arange(n, dtype=np.uint64), ASKERS[:q])


def drawn(n: int, d: int, seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


@pytest.fixture(scope="module")
def catalogue() -> NDArray[np.float32]:
    """Clustered vectors, as learned ones are; the last column is an item's popularity."""
    rng = np.random.default_rng(0)
    vectors = 0.7 * drawn(300, D, 1)[rng.integers(0, 300, N)] + 0.7 * drawn(N, D, 2)
    vectors[:, -1] = rng.normal(size=N)
    scaled: NDArray[np.float32] = (vectors / np.sqrt(D)).astype(np.float32)
    return scaled


@pytest.fixture(scope="module")
def people(catalogue: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors near those of some items; the last column weighs popularity."""
    near: NDArray[np.float64] = catalogue[np.random.default_rng(3).integers(0, N, 300)] * np.sqrt(D) + 0.5 * drawn(300, D, 4)
    near[:, -1] = 1.0
    return near.astype(np.float32)


@pytest.fixture(scope="module")
def index(catalogue: NDArray[np.float32], people: NDArray[np.float32]) -> VectorIndex:
    return VectorIndex(catalogue, people[:100])


# ---- exact


@few
@given(st.integers(0, 200), st.integers(1, 9), st.integers(1, 40), st.integers(0, 999), st.floats(0, 1))
def test_the_exact_search_equals_brute_force(n: int, q: int, most: int, seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries = drawn(n, 5, seed), drawn(q, 5, seed + 1)
    vectors = vectors.round(rng.integers(0, 3))  # with ties
    allowed = rng.random(n) < share
    found = exact_top(queries, vectors, allowed, most, ties_of(n, q))
    for k in range(q):
        rows, scores = found.of_query(k)
        everything = np.arange(n, dtype=np.int32)
        products = dots(vectors, everything, queries, np.full(n, k, np.int32))
        keys = ties_of(n, q).keys(np.full(n, k), everything)
        expected = sorted(np.flatnonzero(allowed).tolist(), key=lambda row: (-products[row], keys[row]))[:most]
        assert rows.tolist() == sorted(expected)
        assert np.array_equal(scores, products[rows])
        assert scores == pytest.approx(vectors[rows] @ queries[k], rel=1e-4, abs=1e-5)


@few
@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 999), st.floats(-1, 1))
def test_an_exact_result_does_not_depend_on_where_vectors_lie(n: int, most: int, seed: int, above: float) -> None:
    vectors, queries, hashes = drawn(n, 65, seed)[np.arange(n) // 3], drawn(2, 65, seed + 1), np.arange(n, dtype=np.uint64)
    moved = np.random.default_rng(seed).permutation(n)
    allowed = np.random.default_rng(seed + 2).random(n) < 0.8
    here = exact_top(queries, vectors, allowed, most, Ties(hashes, ASKERS[:2]), above)
    there = exact_top(queries, vectors[moved], allowed[moved], most, Ties(hashes[moved], ASKERS[:2]), above)
    for k in range(2):
        (rows, scores), (others, their_scores) = here.of_query(k), there.of_query(k)
        order = np.argsort(moved[others])
        assert rows.tolist() == moved[others][order].tolist()
        assert np.array_equal(scores, their_scores[order])
        assert allowed[rows].all()
        assert (scores > above).all()


@few
@given(st.integers(1, 300), st.integers(2, 40), st.integers(1, 50), st.integers(0, 999))
def test_an_exact_result_does_not_depend_on_the_batch(n: int, q: int, most: int, seed: int) -> None:
    vectors, queries, allowed = drawn(n, 65, seed)[np.arange(n) // 2], drawn(q, 65, seed + 1), np.ones(n, np.bool_)
    ties = ties_of(n, q)
    found = exact_top(queries, vectors, allowed, most, ties)
    for k in range(q):
        alone = exact_top(queries[k : k + 1], vectors, allowed, most, ties.of(np.asarray([k])))
        rows, scores = found.of_query(k)
        assert rows.tolist() == alone.rows.tolist()
        assert np.array_equal(scores, alone.scores)


# ---- approximate


def test_an_index_over_many_finds_its_share_of_what_brute_force_finds(
    index: VectorIndex, people: NDArray[np.float32], catalogue: NDArray[np.float32]
) -> None:
    new = people[100:]
    assert index.recall >= 0.95, "on sampled queries that did not choose the number of lists"
    assert index.measured(new) >= 0.95, "and on queries it never saw"
    narrow = replace(index.settings, recall=0.01)
    assert VectorIndex(catalogue, people[:20], narrow).measured(new) < 0.95, "fewer lists find less: the figure can fall"
    assert index.probes < len(index.lists.centres) / 2, "and it does not look at everything"


def test_an_approximate_result_does_not_depend_on_the_batch(index: VectorIndex, people: NDArray[np.float32]) -> None:
    allowed = np.ones(N, np.bool_)
    ties = ties_of(N, 64)
    together = index.search(people[:64], allowed, 50, ties)
    for n in range(0, 64, 7):
        alone = index.search(people[n : n + 1], allowed, 50, ties.of(np.asarray([n])))
        rows, scores = together.of_query(n)
        assert rows.tolist() == alone.rows.tolist()
        assert np.array_equal(scores, alone.scores)


def test_what_is_not_allowed_is_never_found_and_the_next_best_takes_its_place(
    index: VectorIndex, people: NDArray[np.float32], catalogue: NDArray[np.float32]
) -> None:
    allowed = np.ones(N, np.bool_)
    ties = ties_of(N, 20)
    before = index.search(people[:20], allowed, 30, ties)
    for n in range(20):
        allowed[before.of_query(n)[0][::2]] = False
    after = index.search(people[:20], allowed, 30, ties)
    for n in range(20):
        rows, scores = after.of_query(n)
        assert allowed[rows].all()
        assert len(rows) == 30
        assert scores == pytest.approx(catalogue[rows] @ people[n], rel=1e-5), "scores are exact"


def test_an_index_takes_a_byte_per_dimension(index: VectorIndex) -> None:
    lists = len(index.lists.centres)
    assert index.nbytes <= N * (D + 4) + lists * (4 * D + 8) + 4 * D + 8


def test_settings_that_cannot_work_are_refused() -> None:
    for wrong in ({"exact_below": 0}, {"recall": 0.0}, {"recall": 1.5}, {"sampled": 0}):
        with pytest.raises(ConfigError):
            IndexSettings(**wrong)


# ---- in a release


def test_a_release_with_an_index_serves_new_items_and_no_removed_ones(learned: Learned) -> None:
    exact = ServingModel(learned.release())
    indexed = ServingModel(learned.release(), index=IndexSettings(exact_below=1, recall=1.0, depth=20))
    assert exact.index is None
    assert indexed.index is not None
    assert indexed.index.recall == 1.0
    store = ItemStore(1)
    for name in [*learned.item_ids[::-1], "new1", "new2"]:  # in another order than in the release
        store.upsert(Item(name, "a red thing"))
    store.remove(learned.item_ids[3])
    store.remove("new2")
    people = drawn(9, exact.dimensions, 5)
    eligible, ties = store.eligible(0), Ties(store.hashes, ASKERS[:9])
    for model in (exact, indexed):
        model.sync(store)
    for most in (3, 10, 1_000):
        by_all, by_index = (model.nearest(people, eligible, most, ties) for model in (exact, indexed))
        for n in range(9):
            (rows, scores), (others, their_scores) = by_all.of_query(n), by_index.of_query(n)
            assert rows.tolist() == others.tolist()
            assert np.allclose(scores, their_scores)
            assert store.available[rows].all()
    assert store.row_of("new1") in rows.tolist()
