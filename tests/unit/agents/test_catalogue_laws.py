"""Laws of the broadcast handlers: the division of records into chunks has no effect."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agents.broadcast.item_stream import Catalogue
from agents.metrics import Metrics
from models.items.store import ItemStore
from schemas.codec import encode
from streams.kafka.chunks import Chunk

RECORD = st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(1, 50), st.booleans())


def told(records: list[tuple[int, int, int, bool]], size: int) -> ItemStore:
    """Return the store after applying the records in chunks of `size`; some have no key."""
    store = ItemStore(4)
    catalogue = Catalogue(store, Metrics())
    values, keys = [], []
    for item, partition, n, keyed in records:
        datum = {"item_id": f"i{item}", "partition": partition, "offset": n, "counts": {"view": n}, "value_sum": 1.0 * n}
        datum |= {"value_count": n, "popularity": float(n), "updated_at": 1_000 + n, "first_at": 1_000}
        values.append(encode("item_statistics", datum))
        keys.append(f"i{item}|{partition}".encode() if keyed else None)
    for start in range(0, len(values), size):
        part = slice(start, start + size)
        count = len(values[part])
        catalogue.on_statistics(Chunk("s", 0, range(start, start + count), keys[part], values[part], [0] * count, [()] * count))
    return store


@given(
    st.lists(RECORD, min_size=1, max_size=60).map(lambda drawn: [(i, p, n, True) for i, p, n, _ in drawn]), st.integers(1, 60)
)
def test_of_one_key_the_newest_counts_however_records_are_cut(records: list[tuple[int, int, int, bool]], size: int) -> None:
    whole, one_by_one = told(records, size), told(records, 1)
    for item in range(6):
        rows = whole.row_of(f"i{item}"), one_by_one.row_of(f"i{item}")
        assert (rows[0] < 0) == (rows[1] < 0)
        if rows[0] >= 0:
            assert np.array_equal(whole.events[rows[0]], one_by_one.events[rows[1]])
            assert np.array_equal(whole.popularity[rows[0]], one_by_one.popularity[rows[1]])


@given(st.lists(RECORD, min_size=1, max_size=40, unique_by=lambda record: record[:2]), st.integers(1, 40))
def test_records_without_a_key_do_not_stand_for_one_another(records: list[tuple[int, int, int, bool]], size: int) -> None:
    store = told(records, size)
    for item, partition, n, _ in records:
        assert store.events[store.row_of(f"i{item}"), partition] == n
