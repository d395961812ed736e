"""Laws of the watchdog, of table digests and of the rows on disk."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rocksdict import WriteBatch

from schemas.errors import NotReady, StoreCorrupt
from streams.kafka.topics import TOMBSTONES_MS
from streams.state.digests import digest
from streams.state.rocks import PartitionStore, block_cache
from streams.state.standby import open_or_rebuild
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


def generation(number: int) -> dict[bytes, bytes | None]:
    """Return more rows than one batch holds; each generation changes all rows and drops some of the previous one."""
    kept = {b"k%04d" % n: b"%08d" % number * 100 for n in range(4_000)}
    return {**kept, **{b"k%04d" % n: None for n in range(number % 3, 4_000, 3)}}


def test_a_write_that_ends_half_way_leaves_the_earlier_position_and_replaying_from_it_mends_the_rows(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0", block_cache(8))
    store.open()
    store.write(generation(1), 7)
    batches, write = list[WriteBatch](), store._write

    def failing(batch: WriteBatch) -> None:
        if len(batches) == 2:
            raise NotReady("store_unavailable", "the disk is full")
        batches.append(batch)
        write(batch)

    store._write = failing  # type: ignore[method-assign]
    with pytest.raises(NotReady):
        store.write(generation(2), 9)
    assert store.position == 7
    store.close()
    again = PartitionStore(tmp_path / "0", block_cache(8))
    again.open()
    assert again.position == 7
    assert again.get_many([b"k0000"]) == [b"00000002" * 100]
    again.write(generation(2) | generation(3), 11)
    whole = PartitionStore(tmp_path / "1", block_cache(8))
    whole.open()
    for number, position in ((1, 7), (2, 9), (3, 11)):
        whole.write(generation(number), position)
    assert again.digest() == whole.digest()
    whole.close()
    again.close()


WRITES_UNTIL_KILLED = """
import sys
from itertools import count
from pathlib import Path
from streams.state.rocks import PartitionStore, block_cache
store = PartitionStore(Path(sys.argv[1]), block_cache(8))
store.open()
for number in count(1):
    store.write({b"k%04d" % n: b"%08d" % number * 100 for n in range(4_000)}, number)
    print(number, flush=True)
"""


def test_rows_of_a_killed_process_are_at_least_as_new_as_their_position(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITES_UNTIL_KILLED, str(tmp_path / "0")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as writing:
        assert writing.stdout is not None
        for line in writing.stdout:
            if int(line) == 20:
                writing.kill()
    store = PartitionStore(tmp_path / "0", block_cache(8))
    store.open()
    assert store.position >= 1  # a memtable holds two generations and a half
    numbers = [int(value[:8]) for _, value in store.scan(b"k")]
    assert len(numbers) == 4_000
    assert min(numbers) >= store.position
    store.close()


def test_a_digest_beside_writes_sees_each_of_them_whole_or_not_at_all(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0", block_cache(8))
    store.open()

    def write_all() -> None:
        for number in range(30):
            store.write(generation(number), number)

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write_all)
        seen = []
        while not writing.done():
            seen.append(store.digest())
        writing.result()
    assert len({position for position, _ in seen}) > 1
    for position, found in seen:
        rows = generation(position) if position >= 0 else {}
        assert found == digest((key, value) for key, value in rows.items() if value is not None)
    store.close()


def filled(folder: Path, rows: int) -> PartitionStore:
    """Create a store whose rows occupy several blocks of a table file."""
    store = PartitionStore(folder, block_cache(8))
    store.open()
    store.write({b"k%06d" % n: b"v" * 200 for n in range(rows)}, 7)
    store.close()
    store.open()
    store._db.flush()  # type: ignore[union-attr]
    return store


def flip(folder: Path) -> None:
    """Flip one bit in the middle of the largest table file."""
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
        assert (store.position, store.damaged) == (-1, False)
        store.close()


def test_a_folder_that_cannot_be_closed_in_peace_is_closed_and_rebuilt(tmp_path: Path) -> None:
    store = filled(tmp_path / "0", 5_000)
    store._db.close()  # type: ignore[union-attr]

    class Broken:
        def close(self) -> None:
            raise Exception("Corruption: block checksum mismatch")

    store._db = Broken()
    store.close()
    assert store.damaged
    with pytest.raises(StoreCorrupt):
        store.open()
    open_or_rebuild(store, "it")
    assert store.position == -1
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


DAY_S = 86_400.0


def crashed(store: PartitionStore, folder: Path) -> None:
    """Copy the files of an open store, as a crash would leave them, without the contents of memory."""
    shutil.copytree(store.folder, folder, ignore=shutil.ignore_patterns("LOCK"))


def test_rows_older_than_the_deletions_a_changelog_remembers_are_rebuilt_however_new_the_files_are(tmp_path: Path) -> None:
    now = time.time()
    store = PartitionStore(tmp_path / "0", block_cache(8), clock=lambda: now)
    store.open()
    store.write({b"k": b"of a person"}, 10)
    store.close()
    now += TOMBSTONES_MS / 1_000
    store.open()
    store.write({b"k": None}, 20)  # in memory alone
    crashed(store, tmp_path / "1")
    store.close()
    left = PartitionStore(tmp_path / "1", block_cache(8), clock=lambda: now + 60)
    left.open()
    assert (left.position, list(left.scan(b"k"))) == (10, [(b"k", b"of a person")])
    left.close()
    open_or_rebuild(left, "it")
    assert (left.position, list(left.scan(b"k"))) == (-1, [])
    left.close()
    kept = PartitionStore(tmp_path / "0", block_cache(8), clock=lambda: now + 60)
    open_or_rebuild(kept, "it")
    assert kept.position == 20
    kept.close()


def test_a_position_of_format_1_is_read_and_is_as_old_as_the_newest_file(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0", block_cache(8))
    store.open()
    store.write({b"k": b"v"}, 7)
    store._db.put(b"\x00position", bytes.fromhex("010700000000000000"))  # type: ignore[union-attr]
    store.close()
    store.open()
    assert (store.position, round(store.idle_s() / DAY_S)) == (7, 0)
    store.close()
    for path in (tmp_path / "0").glob("*"):
        os.utime(path, (time.time() - 5 * DAY_S,) * 2)
    store.open()
    assert (store.position, round(store.idle_s() / DAY_S)) == (7, 5)
    store.close()


def test_the_position_has_its_golden_bytes(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0", block_cache(8), clock=lambda: 1_700_000_000.5)
    store.open()
    store.write({}, 513)
    assert store.get_many([b"\x00position"])[0].hex() == (  # type: ignore[union-attr]
        "030102000000000000f469e5cf8b010000" + 16 * "00"
    )
    store.log_id = bytes(range(16))
    store.write({}, 513)
    assert store.get_many([b"\x00position"])[0].hex()[34:] == bytes(range(16)).hex()  # type: ignore[union-attr]
    store.close()
    store.open()
    assert (store.position, store.log_id) == (513, bytes(range(16)))
    store.close()


def test_a_position_of_format_2_is_read_and_is_of_an_unknown_log(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0", block_cache(8), clock=lambda: 1_700_000_060.5)
    store.open()
    store._db.put(b"\x00position", bytes.fromhex("020102000000000000f469e5cf8b010000"))  # type: ignore[union-attr]
    store.close()
    store.open()
    assert (store.position, store.log_id, round(store.idle_s())) == (513, bytes(16), 60)
    store.close()


def test_a_write_that_outlives_its_folder_leaves_nothing_in_the_next_one(tmp_path: Path) -> None:
    store = PartitionStore(tmp_path / "0", block_cache(8))
    store.open()
    store._writing.acquire()
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(store.write, {b"k": b"v"}, 77)
        while not late.running():
            time.sleep(0.01)
        time.sleep(0.05)
        store._db.close()  # type: ignore[union-attr]
        store._db = None
        store._writing.release()
        with pytest.raises(NotReady):
            late.result()
    store.wipe()
    store.open()
    assert (store.position, list(store.scan(b"k"))) == (-1, [])
    store.close()
