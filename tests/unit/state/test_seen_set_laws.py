"""Laws of the seen-set: it equals `pybloom-live`, bit for bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pybloom_live import BloomFilter

from models.state.bloom import (
    BITS,
    CAPACITY,
    ERROR_RATE,
    FIRST_TIERS,
    LATER_CAPACITY,
    MAX_TIERS,
    TIER_RATE,
    SeenSet,
    capacity,
    positions,
)

BOUND = FIRST_TIERS * CAPACITY + (MAX_TIERS - FIRST_TIERS) * LATER_CAPACITY

ids = st.lists(st.text(min_size=1, max_size=12), max_size=60)


def of(item_ids: list[str]) -> SeenSet:
    seen = SeenSet()
    for item_id in item_ids:
        seen.add(item_id)
    return seen


@given(ids)
def test_what_was_added_is_never_denied(item_ids: list[str]) -> None:
    seen = of(item_ids)
    assert all(item_id in seen for item_id in item_ids)


@given(ids, ids)
def test_one_tier_holds_the_bits_and_gives_the_answers_of_pybloom_live(item_ids: list[str], asked: list[str]) -> None:
    seen, peer = of(item_ids), BloomFilter(CAPACITY, TIER_RATE)
    for item_id in item_ids:
        peer.add(item_id)
    if item_ids:
        assert seen.tiers[0].tobytes() == peer.bitarray.tobytes()
    assert [item_id in seen for item_id in asked] == [item_id in peer for item_id in asked]


@given(ids)
def test_add_says_whether_the_item_was_new_as_pybloom_live_does(item_ids: list[str]) -> None:
    seen, peer = SeenSet(), BloomFilter(CAPACITY, TIER_RATE)
    assert [not seen.add(item_id) for item_id in item_ids] == [peer.add(item_id) for item_id in item_ids]


@given(ids, ids)
def test_many_candidates_at_once_are_answered_as_one_by_one(item_ids: list[str], asked: list[str]) -> None:
    seen = of(item_ids)
    if asked:
        together = seen.contains_many(np.stack([positions(item_id) for item_id in asked]))
        assert together.tolist() == [item_id in seen for item_id in asked]


@given(ids)
@settings(max_examples=30)
def test_bytes_give_the_same_set_back(item_ids: list[str]) -> None:
    seen = of(item_ids)
    counts, bits = seen.to_bytes()
    again = SeenSet.of_bytes(counts, bits)
    assert again.to_bytes() == (list(counts), bits)


def many(prefix: str, n: int) -> np.ndarray[tuple[int, int], np.dtype[np.int32]]:
    return np.stack([positions(f"{prefix}-{k}") for k in range(n)])


@pytest.mark.parametrize(
    ("items", "most"), [(CAPACITY, ERROR_RATE / 3), (FIRST_TIERS * CAPACITY, ERROR_RATE), (10_000, 0.015), (BOUND, 0.025)]
)
def test_up_to_the_bound_nothing_is_denied_and_few_others_are_claimed(items: int, most: float) -> None:
    seen = of([f"held-{n}" for n in range(items)])
    assert seen.contains_many(many("held", items)).all()
    assert seen.contains_many(many("other", 20_000)).mean() <= most


def test_what_is_claimed_falsely_is_not_counted_and_so_tiers_are_full_when_they_are_left() -> None:
    seen = of([f"held-{n}" for n in range(BOUND)])
    assert len(seen.tiers) <= MAX_TIERS
    assert seen.counts[:-1] == [capacity(n + 1) for n in range(len(seen.counts) - 1)]
    assert sum(seen.counts) >= BOUND * (1 - 0.025)


def test_beyond_the_last_tier_the_oldest_items_age_out_and_the_newest_stay() -> None:
    held = [f"held-{n}" for n in range(BOUND + 3 * CAPACITY)]
    seen = of(held)
    assert len(seen.tiers) == MAX_TIERS
    newest = np.stack([positions(item_id) for item_id in held[-(MAX_TIERS - 2) * LATER_CAPACITY :]])
    # An item that an older tier falsely claimed goes when that tier goes.
    assert seen.contains_many(newest).mean() >= 1 - ERROR_RATE
    assert seen.contains_many(np.stack([positions(item_id) for item_id in held[:CAPACITY]])).mean() <= 0.025


def test_a_full_seen_set_takes_at_most_1_3_times_the_theoretical_bits_per_item() -> None:
    assert 1.3 * 1.44 * math.log2(1 / ERROR_RATE) >= BITS / CAPACITY


@pytest.mark.parametrize("items", [0, 300, 1_400, 5_000])
def test_the_false_positive_rate_of_a_set_is_the_share_of_other_items_that_it_holds(items: int) -> None:
    seen = of([f"item {n}" for n in range(items)])
    facts = seen.facts()
    asked = 20_000
    measured = int(seen.contains_many(np.stack([positions(f"other {n}") for n in range(asked)])).sum()) / asked
    assert facts["items"] == sum(seen.counts)
    assert (facts["tiers"], facts["bytes"]) == (len(seen.tiers), sum(tier.nbytes for tier in seen.tiers))
    # four standard deviations of a share of 20,000
    assert abs(measured - facts["false_positive_rate"]) <= 4 * math.sqrt(max(measured, 1e-4) / asked)
    assert (facts["false_positive_rate"] > 0) == (items > 0)
