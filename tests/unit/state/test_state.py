"""The seen-set against pybloom-live, and the item store."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pybloom_live import BloomFilter

from models.items.store import ItemStore, text_vector
from models.state.bloom import CAPACITY, ERROR_RATE, TIER_RATE, SeenSet, positions
from models.state.rows import ItemStatRow
from schemas.records import Item


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=CAPACITY, unique=True), st.lists(st.text(max_size=12)))
def test_seen_set_answers_as_pybloom_does(held: list[str], others: list[str]) -> None:
    mine, theirs = SeenSet(), BloomFilter(CAPACITY, TIER_RATE)
    for item in held:
        assert mine.add(item) == (not theirs.add(item))
    wanted = [item in theirs for item in held + others]
    where = np.stack([positions(item) for item in held + others])
    assert mine.contains_many(where).tolist() == wanted
    assert all(wanted[: len(held)])
    assert SeenSet.of_bytes(*mine.to_bytes()).contains_many(where).tolist() == wanted


def test_false_positive_rate_is_within_its_setting() -> None:
    seen = SeenSet()
    for n in range(3 * CAPACITY):
        seen.add(f"held{n}")
    where = np.stack([positions(f"other{n}") for n in range(5_000)])
    assert seen.contains_many(where).mean() <= ERROR_RATE


def test_statistics_heard_again_overwrite() -> None:
    items = ItemStore(2)
    items.upsert(Item("a"))
    row = ItemStatRow({"view": 3}, popularity=2.5, updated_ms=10, first_ms=5)
    for partition in (0, 0, 1, 0):
        items.set_statistics("a", partition, row)
    assert items.popularity_now().tolist() == [5.0]
    assert items.events[0].tolist() == [3, 3]


def test_the_store_grows_and_keeps_what_it_held() -> None:
    items = ItemStore(1, capacity=2)
    for n in range(40):
        items.upsert(Item(f"i{n}", f"title number{n}", categories=(f"c{n % 3}",)))
    assert items.rows_of(["i0", "i39", "none"]).tolist() == [0, 39, -1]
    assert items.category_names == ["c0", "c1", "c2"]
    assert np.array_equal(items.text[0], text_vector(Item("i0", "title number0", categories=("c0",))))
    assert np.array_equal(items.bloom[39], positions("i39"))


def test_attributes_that_name_a_kind_count_for_content_and_numbers_do_not() -> None:
    one, same, other = (Item(f"i{n}", "shoe", attributes={"brand": brand, "size": "41"}) for n, brand in enumerate("AAB"))
    assert np.array_equal(text_vector(one), text_vector(same))
    assert float(text_vector(one) @ text_vector(other)) < 0.95
    plain = Item("i3", "shoe", attributes={"brand": "A"})
    assert np.array_equal(text_vector(plain), text_vector(one)), "how large it is, is no kind"
    assert np.array_equal(text_vector(Item("i4", "shoe", attributes={"note": "x" * 65})), text_vector(Item("i5", "shoe")))
    swapped = Item("i6", "shoe", attributes={"size": "41", "brand": "A"})
    assert np.array_equal(text_vector(swapped), text_vector(one))
