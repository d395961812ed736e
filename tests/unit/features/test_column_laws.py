"""The compiled loops compute what the features' descriptions say, written here with NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.features.kernels import columns

DAY = 86_400_000
NOW = 400 * DAY
PARTITIONS, SLOTS = 2, 3
SCALE = np.asarray([3.0, 1.5, 5.0], np.float32)
HALF_LIFE = 14 * DAY
counts = st.integers(0, 50)
times = st.one_of(st.just(0), st.integers(1, NOW + DAY))
prices = st.one_of(st.just(float("nan")), st.floats(0, 1e6, width=32))
close = pytest.approx


def drawn(data: st.DataObject, of: st.SearchStrategy[Any], shape: tuple[int, ...], dtype: type) -> NDArray[Any]:
    size = int(np.prod(shape))
    return np.asarray(data.draw(st.lists(of, min_size=size, max_size=size)), dtype).reshape(shape)


@given(st.data(), st.integers(1, 4))
def test_columns_of_items_are_as_described(data: st.DataObject, n: int) -> None:
    popularity = drawn(data, st.floats(0, 1e4), (n, PARTITIONS), np.float64)
    popularity_ms = drawn(data, times, (n, PARTITIONS), np.int64)
    events, valued = (drawn(data, counts, (n, PARTITIONS), np.int64) for _ in range(2))
    sums = drawn(data, st.floats(-500, 500), (n, PARTITIONS), np.float64)
    actions = drawn(data, counts, (n, PARTITIONS, SLOTS), np.int64)
    first, published = (drawn(data, times, (n,), np.int64) for _ in range(2))
    price, met = drawn(data, prices, (n,), np.float32), drawn(data, st.booleans(), (n,), np.bool_)
    rows = drawn(data, st.integers(0, n - 1), (data.draw(st.integers(0, 6)),), np.int32)
    slots = np.asarray([2, -1, 0], np.int64)
    out = np.empty((len(rows), 10 + len(slots)), np.float32)
    columns.of_items(
        rows, popularity, popularity_ms, HALF_LIFE, events, sums, valued, actions, slots, first, published, price, met, NOW,
        float(DAY), SCALE, out,
    )  # fmt: skip

    decayed = (popularity * 2.0 ** (-np.maximum(NOW - popularity_ms, 0) / HALF_LIFE)).sum(axis=1)
    count, rated = events.sum(axis=1), valued.sum(axis=1)
    mean = np.where(rated > 0, sums.sum(axis=1) / np.maximum(rated, 1), SCALE[0])
    standard = np.clip((mean - SCALE[0]) / SCALE[1], -SCALE[2], SCALE[2])

    def days(since: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.where(since > 0, np.log1p(np.maximum(NOW - since, 0) / DAY), 0.0)

    told = actions[:, :, np.maximum(slots, 0)].sum(axis=1) * (slots >= 0)
    expected = np.column_stack(
        [
            np.log1p(decayed),
            np.log1p(count),
            decayed / (count + 1.0),
            days(first),
            days(published),
            standard * rated / (rated + 5.0),
            np.log1p(rated),
            np.log1p(np.where(price > 0, price, 0)),
            ~np.isnan(price),
            met,
            told / (count + 5.0)[:, None],
        ]
    )[rows]
    assert out == close(expected, rel=1e-4, abs=1e-4)


@given(st.data(), st.integers(1, 3))
def test_columns_of_users_are_as_described_and_zero_without_history(data: st.DataObject, q: int) -> None:
    h = 5
    size = drawn(data, st.integers(0, h), (q,), np.int64)
    events, session = size + drawn(data, counts, (q,), np.int64), drawn(data, counts, (q,), np.int64)
    values = drawn(data, st.one_of(st.just(float("nan")), st.floats(-20, 20, width=32)), (q, h), np.float32)
    kept = np.arange(h) < size[:, None]
    liked = drawn(data, st.booleans(), (q, h), np.bool_) & kept
    first = drawn(data, st.integers(1, NOW), (q,), np.int64)
    last = np.maximum(first, drawn(data, st.integers(1, NOW + DAY), (q,), np.int64))
    out = np.zeros((q, 7), np.float32)
    columns.of_users(events, size, values, liked, first, last, session, NOW, float(DAY), SCALE, out)
    for n in range(q):
        if not size[n]:
            assert not out[n].any()
            continue
        told = values[n][kept[n] & ~np.isnan(values[n])]
        standard = np.clip((told - SCALE[0]) / SCALE[1], -SCALE[2], SCALE[2])
        expected = [
            np.log1p(events[n]),
            np.log1p(size[n]),
            standard.mean() if len(told) else 0.0,
            liked[n].sum() / size[n],
            np.log1p(max(NOW - last[n], 0) / DAY),
            np.log1p(session[n]),
            np.log1p((last[n] - first[n]) / DAY),
        ]
        assert out[n] == close(np.asarray(expected), rel=1e-4, abs=1e-4)


@given(
    st.lists(
        st.tuples(st.dictionaries(st.integers(0, 9), st.floats(0.125, 8, width=32)), st.lists(st.integers(0, 9))),
        min_size=1,
        max_size=4,
    )
)
def test_a_signal_is_looked_up_by_query_and_item_and_its_work_array_is_left_clean(
    queries: list[tuple[dict[int, float], list[int]]],
) -> None:
    starts = np.cumsum([0, *(len(scores) for scores, _ in queries)]).astype(np.int64)
    rows = np.asarray([row for scores, _ in queries for row in sorted(scores)], np.int32)
    scores = np.asarray([found[row] for found, _ in queries for row in sorted(found)], np.float32)
    query_row = np.asarray([q for q, (_, asked) in enumerate(queries) for _ in asked], np.int32)
    item_row = np.asarray([row for _, asked in queries for row in asked], np.int32)
    work = np.zeros(12, np.float32)
    out = columns.shares(starts, rows, scores, query_row, item_row, work)
    assert not work.any()
    for i, (q, row) in enumerate(zip(query_row.tolist(), item_row.tolist(), strict=True)):
        found = queries[q][0]
        score = found.get(row, 0.0)
        assert out[i].tolist() == close([score, score / max(found.values(), default=1.0)], rel=1e-6)


@given(st.lists(st.lists(st.integers(0, 7), max_size=5), min_size=1, max_size=4), st.data())
def test_the_share_of_the_newest_items_neighbours_is_that_of_the_item(queries: list[list[int]], data: st.DataObject) -> None:
    near = np.asarray(
        [~np.asarray(data.draw(st.lists(st.integers(0, 7), min_size=3, max_size=3, unique=True))) for _ in range(8)], np.int32
    )
    near[data.draw(st.integers(0, 7)), 1:] = 0  # no neighbour
    weights = drawn(data, st.floats(0.125, 8, width=32), (8, 3), np.float32)
    totals = weights.sum(axis=1)
    last = drawn(data, st.integers(-1, 7), (len(queries),), np.int32)
    query_row = np.asarray([q for q, asked in enumerate(queries) for _ in asked], np.int32)
    item_row = np.asarray([row for asked in queries for row in asked], np.int32)
    work = np.zeros(8, np.float32)
    out = columns.last_shares(last, near, weights, totals, query_row, item_row, work)
    assert not work.any()
    for i, (q, row) in enumerate(zip(query_row.tolist(), item_row.tolist(), strict=True)):
        there = (near[last[q]] < 0) & (~near[last[q]] == row) & (last[q] >= 0)
        places = np.flatnonzero(there)
        expected = weights[last[q], places[0]] / totals[last[q]] if len(places) else 0.0
        assert out[i] == close(expected, rel=1e-6)


@given(st.lists(st.lists(prices, max_size=5), min_size=1, max_size=3), st.data())
def test_prices_are_compared_with_those_of_the_newest_items(queries: list[list[float]], data: st.DataObject) -> None:
    price = np.asarray([value for asked in queries for value in asked] + [float("nan"), 4.0], np.float32)
    rows = np.arange(len(price) - 2, dtype=np.int32)
    query_row = np.asarray([q for q, asked in enumerate(queries) for _ in asked], np.int32)
    newest = drawn(data, st.integers(-1, len(price) - 1), (len(queries), 3), np.int32)
    logs, above, priced, told = columns.of_prices(price, rows, query_row, newest)
    logarithm = np.log1p(price.astype(np.float64))
    usual = [logarithm[mine[mine >= 0]] for mine in newest]
    usual = [mine[~np.isnan(mine)] for mine in usual]
    assert priced == bool((~np.isnan(price[rows])).any())
    assert told == any(len(mine) for mine in usual)
    assert logs == close(logarithm[rows], rel=1e-5, abs=1e-5, nan_ok=True)
    for i, q in enumerate(query_row.tolist()):
        known = len(usual[q]) and not np.isnan(price[i])
        assert above[i] == close(logarithm[i] - usual[q].mean() if known else 0.0, rel=1e-4, abs=1e-4)
