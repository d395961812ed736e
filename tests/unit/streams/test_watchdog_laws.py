"""Laws of the watchdog and of table digests."""

from __future__ import annotations

import random
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from streams.digests import digest
from streams.store import PartitionStore, block_cache
from streams.watchdog import Watchdog

LIMIT = 10.0
steps = st.lists(st.tuples(st.floats(0.1, 8.0), st.integers(0, 3), st.booleans()), min_size=1, max_size=30)


@given(steps)
def test_stuck_is_what_had_work_waiting_at_one_mark_for_longer_than_the_limit(seen: list[tuple[float, int, bool]]) -> None:
    now = 0.0
    watchdog = Watchdog(LIMIT, clock=lambda: now)
    moved, last = 0.0, None
    for wait, mark, waiting in seen:
        now += wait
        watchdog.observe("p", mark, waiting=waiting)
        if not waiting or mark != last:
            moved, last = now, mark
        assert bool(watchdog.stuck()) == (now - moved > LIMIT)
    watchdog.keep(set())
    now += 100
    assert watchdog.stuck() == {}


rows = st.dictionaries(st.binary(max_size=8), st.binary(max_size=20), max_size=20)


@given(rows, rows, st.randoms(use_true_random=False))
def test_a_digest_tells_tables_apart_and_does_not_depend_on_the_order(
    one: dict[bytes, bytes], two: dict[bytes, bytes], rng: random.Random
) -> None:
    shuffled = list(one.items())
    rng.shuffle(shuffled)
    assert digest(shuffled) == digest(one.items())
    assert (digest(one.items()) == digest(two.items())) == (one == two)


def test_a_stores_digest_is_that_of_its_rows_and_names_the_position(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0", block_cache(8))
    store.open()
    assert store.digest() == (-1, digest(()))
    store.write({b"a": b"1", b"b": b"2", b"c": b"3"}, 7)
    store.write({b"a": b"4", b"b": None}, 9)
    assert store.digest() == (9, digest({b"a": b"4", b"c": b"3"}.items()))
    store.close()
