"""Laws of the seen-set: it answers, bit for bit, what `pybloom-live` answers."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pybloom_live import BloomFilter

from models.bloom import BITS, CAPACITY, ERROR_RATE, MAX_TIERS, TIER_RATE, SeenSet, positions

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


def test_across_tiers_nothing_is_denied_and_false_positives_stay_within_the_setting() -> None:
    held = [f"held-{n}" for n in range(MAX_TIERS * CAPACITY)]
    seen = of(held)
    assert len(seen.tiers) == MAX_TIERS
    assert seen.contains_many(np.stack([positions(item_id) for item_id in held])).all()
    others = np.stack([positions(f"other-{n}") for n in range(20_000)])
    assert seen.contains_many(others).mean() <= ERROR_RATE


def test_beyond_the_last_tier_the_oldest_items_age_out_and_the_newest_stay() -> None:
    held = [f"held-{n}" for n in range((MAX_TIERS + 2) * CAPACITY)]
    seen = of(held)
    assert len(seen.tiers) == MAX_TIERS
    newest = np.stack([positions(item_id) for item_id in held[-(MAX_TIERS - 1) * CAPACITY :]])
    # An item that an older tier falsely claimed goes when that tier goes.
    assert seen.contains_many(newest).mean() >= 1 - ERROR_RATE
    assert not seen.contains_many(np.stack([positions(item_id) for item_id in held[:CAPACITY]])).mean() > ERROR_RATE * 2


def test_a_full_seen_set_takes_at_most_1_3_times_the_theoretical_bits_per_item() -> None:
    assert 1.3 * 1.44 * math.log2(1 / ERROR_RATE) >= BITS / CAPACITY
