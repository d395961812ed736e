"""Laws of the watchdog, of table digests and of the rows on disk."""

from __future__ import annotations

import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import NotReady, StoreCorrupt
from streams.digests import digest
from streams.standby import open_or_rebuild
from streams.store import PartitionStore, block_cache
from streams.topics import TOMBSTONES_MS
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


def filled(folder: Path, rows: int) -> PartitionStore:
    """A store whose rows lie in several blocks of a table file."""
    store = PartitionStore(folder, block_cache(8))
    store.open()
    store.write({b"k%06d" % n: b"v" * 200 for n in range(rows)}, 7)
    store.close()
    store.open()
    store._db.flush()  # type: ignore[union-attr]
    return store


def flip(folder: Path) -> None:
    """One bit in the middle of the largest table file."""
    path = max(folder.glob("*.sst"), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))


def test_a_damaged_block_is_noticed_by_every_way_of_reading_and_by_the_next_open(tmp_path: Path) -> None:
    filled(tmp_path / "0", 5_000).close()
    flip(tmp_path / "0")
    for read in (
        lambda store: list(store.scan(b"k")),
        lambda store: store.get_many([b"k%06d" % n for n in range(5_000)]),
        lambda store: store.digest(),
    ):
        copy = tmp_path / f"{id(read)}"
        shutil.copytree(tmp_path / "0", copy)
        store = PartitionStore(copy, block_cache(8))
        store.open()
        with pytest.raises(StoreCorrupt):
            read(store)
        assert store.damaged
        store.close()
        with pytest.raises(StoreCorrupt):
            store.open()
        store.wipe()
        store.open()
        assert store.position == -1
        assert not store.damaged
        store.close()


def test_a_folder_that_is_in_use_is_not_taken_for_damaged(tmp_path: Path) -> None:
    first, second = filled(tmp_path / "0", 10), PartitionStore(tmp_path / "0", block_cache(8))
    with pytest.raises(NotReady):
        second.open()
    assert len(list(first.scan(b"k"))) == 10
    first.close()
    second.open()
    assert len(list(second.scan(b"k"))) == 10
    second.close()


def test_closing_does_not_wait_for_a_digest_of_everything_and_leaves_no_lock(tmp_path: Path) -> None:
    store = filled(tmp_path / "0", 50_000)
    with ThreadPoolExecutor(1) as pool:
        hashing = pool.submit(store.digest)
        store.close()
        store.open()
        with suppress(NotReady):
            assert hashing.result().__class__ is tuple
    assert store.digest()[1].rows == 50_000
    store.close()


def test_a_folder_older_than_the_deletions_its_changelog_remembers_is_rebuilt(tmp_path: Path) -> None:
    filled(tmp_path / "0", 10).close()
    long_ago = time.time() - TOMBSTONES_MS / 1_000
    for path in (tmp_path / "0").glob("*"):
        os.utime(path, (long_ago, long_ago))
    store = PartitionStore(tmp_path / "0", block_cache(8))
    open_or_rebuild(store, "it")
    assert (store.position, list(store.scan(b"k"))) == (-1, [])
    store.close()
