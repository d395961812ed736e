"""The search by codes returns what the exact search returns, bit for bit, also after vectors have changed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.pipeline.exact import FEW, exact_top
from models.pipeline.kernels import coarse
from models.pipeline.ties import Ties
from models.release.codes import Codes
from models.release.row_search import RowSearch

KINDS = ("normal", "sparse", "equal", "tiny", "zero", "large")


def vectors_of(kind: str, n: int, d: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Vectors whose codes are easy, coarse, or all the same."""
    drawn = rng.normal(size=(n, d)).astype(np.float32)
    if kind == "sparse":
        drawn[rng.random((n, d)) < 0.9] = 0
    elif kind == "equal":
        drawn = np.tile(drawn[:1], (n, 1))
    elif kind == "tiny":
        drawn *= np.float32(1e-30)
    elif kind == "zero":
        drawn[:] = 0
    elif kind == "large":
        drawn *= np.float32(1e9) ** rng.random((n, 1)).astype(np.float32)
    return drawn


def ties_of(n: int, q: int) -> Ties:
    return Ties(np.arange(n, dtype=np.uint64) * np.uint64(977), np.arange(q, dtype=np.uint64))


@given(
    st.sampled_from(KINDS),
    st.integers(1, 400),
    st.integers(1, 70) | st.just(320),
    st.integers(1, FEW),
    st.integers(1, 60),
    st.sampled_from([-np.inf, 0.0, 1e-4]),
    st.integers(0, 2**32 - 1),
)
def test_codes_find_what_exact_search_finds(kind: str, n: int, d: int, q: int, most: int, above: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors, queries, allowed = vectors_of(kind, n, d, rng), vectors_of("normal", q, d, rng), rng.random(n) < 0.8
    queries[rng.random(q) < 0.2] = 0
    if kind == "equal":
        queries[0] = vectors[0]
    codes = Codes()
    found = codes.nearest(queries, vectors, allowed, most, ties_of(n, q), above)
    exact = exact_top(queries, vectors, allowed, most, ties_of(n, q), above)
    for mine, expected in ((found.starts, exact.starts), (found.rows, exact.rows), (found.scores, exact.scores)):
        np.testing.assert_array_equal(mine, expected)


@given(st.sampled_from(KINDS), st.integers(1, 60), st.integers(1, 70) | st.just(320), st.integers(0, 2**32 - 1))
def test_the_bound_holds(kind: str, n: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = vectors_of(kind, n, d, rng)
    codes, scale, error = np.zeros((n, d), np.int8), np.zeros(n, np.float32), np.zeros(n, np.float32)
    coarse.encode(vectors, np.arange(n), codes, scale, error)
    query = rng.normal(size=d)
    coded = (codes.astype(np.float64) * scale[:, None]) @ query
    apart = np.abs(vectors.astype(np.float64) @ query - coded)
    assert (apart <= error.astype(np.float64) * np.linalg.norm(query) * (1 + 1e-6)).all()


@given(st.lists(st.tuples(st.integers(0, 299), st.integers(0, 2**16)), max_size=8), st.integers(0, 2**32 - 1))
def test_changed_vectors_are_encoded_again(changes: list[tuple[int, int]], seed: int) -> None:
    rng, search = np.random.default_rng(seed), RowSearch()
    vectors = vectors_of("normal", 300, 16, rng)
    size = 100
    search.grow(size)
    query, allowed = vectors_of("normal", 1, 16, rng), np.ones(300, np.bool_)
    for row, other in [(0, 0), *changes]:
        if row >= size:  # the catalogue has grown
            size = row + 1
            search.grow(size)
        vectors[row] = vectors_of("normal", 1, 16, np.random.default_rng(other))[0] * 3
        search.cover(np.asarray([row]), held=False)
        found = search.nearest(query, vectors[:size], allowed[:size], 5, ties_of(size, 1))
        exact = exact_top(query, vectors[:size], allowed[:size], 5, ties_of(size, 1))
        np.testing.assert_array_equal(found.rows, exact.rows)
        np.testing.assert_array_equal(found.scores, exact.scores)
