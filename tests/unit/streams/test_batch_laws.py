"""Laws of reading Kafka's record batches in columns: the same records as from aiokafka, for any start and end."""

from __future__ import annotations

import gc
import struct
import weakref
from typing import Any

import numpy as np
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from models.warm import warm
from schemas.codec import encode
from schemas.columns import decode_interactions
from schemas.kernels import decode_block, read_batch
from schemas.records import Interaction
from streams.kafka.chunks import Chunk
from streams.kafka.record_batches import FEWEST, Records, _Fetched, in_columns

READ_COMMITTED = 1
TP = TopicPartition("t", 0)
PRODUCERS = (-1, 5, 6)
texts = st.none() | st.binary(max_size=300)
headers: st.SearchStrategy[list[tuple[str, bytes]]] = (
    st.just([]) | st.just([]) | st.lists(st.tuples(st.sampled_from(["content-type", "ž"]), st.binary(max_size=5)), max_size=2)
)
records = st.tuples(texts, texts, st.integers(0, 2**40), headers, st.integers(0, 3))
batches = st.lists(
    st.tuples(st.lists(records, min_size=1, max_size=8), st.sampled_from([0, 0, 0, 1]), st.sampled_from(PRODUCERS)), max_size=6
)


def written(batch: list[tuple[Any, ...]], codec: int, producer: int, offset: int) -> tuple[bytes, int]:
    """Encode a batch from `offset` on; returns also the next offset. Offsets may have gaps, as after compaction."""
    transactional = int(producer >= 0)
    builder = DefaultRecordBatchBuilder(2, codec, transactional, producer, 0, 0, 1 << 20)
    at = 0
    for key, value, timestamp, head, gap in batch:
        at += gap
        builder.append(at, 1_700_000_000_000 + timestamp, key, value, head)
        at += 1
    data = bytearray(builder.build())
    struct.pack_into(">q", data, 0, offset)
    return bytes(data), offset + at


class State:
    """The part of an assignment's state that a fetch result uses."""

    active, paused = True, False

    def __init__(self, position: int) -> None:
        self.position = position

    def state_value(self, _tp: object) -> State:
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


def result(records_of: Any, data: bytes, aborted: list[tuple[int, int]], offset: int) -> FetchResult:
    found = PartitionRecords(TP, records_of(data), list(aborted), offset, None, None, True, READ_COMMITTED)
    if records_of is _Fetched:
        found._records.large = True  # small batches must be read correctly, too
    return FetchResult(TP, assignment=State(offset), partition_records=found, backoff=0)


def rows(chunk: Chunk) -> list[tuple[Any, ...]]:
    heads = [[tuple(pair) for pair in head] for head in chunk.headers]
    return list(zip(chunk.offsets, chunk.keys, chunk.values, chunk.timestamps, heads, strict=True))


@given(batches, st.integers(0, 40), st.booleans(), st.lists(st.integers(1, 9), min_size=60, max_size=60))
def test_records_in_columns_are_those_that_aiokafka_gives(
    given_: list[tuple[Any, ...]], begin: int, abort: bool, asked: list[int]
) -> None:
    data, offset, starts = b"", 0, dict[int, int]()
    for batch, codec, producer in given_:
        starts.setdefault(producer, offset)
        more, offset = written(batch, codec, producer, offset)
        data += more
    aborted = [(6, starts[6])] if abort and 6 in starts else []
    begin = min(begin, offset)
    expected, mine = result(MemoryRecords, data, aborted, begin), result(_Fetched, data, aborted, begin)
    in_columns(mine)
    found: list[tuple[Any, ...]] = []
    for most in asked:
        if not mine.has_more():
            break
        taken = mine.getall(most)
        assert len(taken) <= most
        if len(taken):
            assert isinstance(taken, Records)
            chunk = Chunk.of("t", 0, taken)
            found += rows(chunk)
            later = [n for n, row in enumerate(found) if row[0] >= mine._assignment.position]
            assert not later, "what was taken is before the position"
    whole = expected.getall(None)
    assert found == (rows(Chunk.of("t", 0, whole)) if whole else [])
    if not mine.has_more():
        assert mine._assignment.position == expected._assignment.position


@given(st.lists(st.integers(0, 2), min_size=1, max_size=40), st.booleans(), st.integers(0, 40))
def test_a_header_name_that_is_not_utf8_is_read_and_changes_nothing_else(kinds: list[int], columns: bool, begin: int) -> None:
    heads: tuple[list[tuple[str, bytes]], ...] = ([], [("content-type", b"j")], [("QQQQ", b"v"), ("a", b"w")])
    data, _ = written([(b"k%d" % n, b"v%d" % n, n, heads[kind], 0) for n, kind in enumerate(kinds)], 0, -1, 0)
    odd = bytearray(data.replace(b"QQQQ", b"Q\xff\xfe\x80"))
    struct.pack_into(">I", odd, 17, calc_crc32c(bytes(odd[21:])))
    expected, mine = result(MemoryRecords, data, [], begin), result(_Fetched, bytes(odd), [], begin)
    if columns:
        in_columns(mine)
    whole, taken = expected.getall(None), mine.getall(1_000)
    plain = rows(Chunk.of("t", 0, whole)) if whole else []
    escaped = [[("Q\\xff\\xfe\\x80" if name == "QQQQ" else name, value) for name, value in row[4]] for row in plain]
    found = rows(Chunk.of("t", 0, taken)) if len(taken) else []
    assert found == [(*row[:4], head) for row, head in zip(plain, escaped, strict=True)]
    assert mine._assignment.position == expected._assignment.position


@given(st.binary(max_size=60), st.integers(1, 4))
def test_bytes_that_are_no_records_are_refused_and_never_read_beyond_their_end(data: bytes, count: int) -> None:
    columns = np.full((6, count), 99, np.int64)
    if read_batch(np.frombuffer(data, np.uint8), 0, len(data), columns):
        ends = np.maximum(columns[4], 0) + np.maximum(columns[5], 0)
        assert int(ends.max()) <= len(data)


def test_a_result_that_nobody_wants_in_columns_is_read_as_ever() -> None:
    data, _ = written([(b"k", b"v", 7, [], 0), (None, None, 8, [("h", b"x")], 0)], 0, -1, 0)
    taken = result(_Fetched, data, [], 0).getall(None)
    assert [(r.offset, r.key, r.value, r.timestamp) for r in taken] == [
        (0, b"k", b"v", 1_700_000_000_007),
        (1, None, None, 1_700_000_000_008),
    ]


def test_what_was_fetched_is_freed_with_the_last_of_it_and_needs_no_search_for_cycles() -> None:
    data, _ = written([(b"u", b"v" * 1000, n, [], 0) for n in range(40)], 0, -1, 0)
    gc.collect()
    gc.disable()
    try:
        mine = result(_Fetched, data, [], 0)
        assert in_columns(mine)
        held = [weakref.ref(mine), weakref.ref(mine._partition_records), weakref.ref(mine._partition_records._records)]
        assert len(mine.getall(10)) == 10
        assert len(mine.getall(100)) == 30
        assert not mine.has_more()
        del mine
        assert [each() for each in held] == [None, None, None]
    finally:
        gc.enable()


def test_batches_read_in_both_ways_by_turns_take_no_more_than_their_bytes_twice() -> None:
    data, offset = b"", 0
    for n in range(400):
        more, offset = written([(b"k", b"v" * 50, n, [("h", b"x")] if n % 2 else [], 0)], 0, -1, offset)
        data += more
    mine = result(_Fetched, data, [], 0)
    assert in_columns(mine)
    taken = mine.getall(1_000)
    assert len(taken) == 400
    assert len(taken.keys.data) + len(taken.values.data) < 4 * len(data)
    assert taken.values.whole() == [b"v" * 50] * 400


def test_small_batches_and_those_that_are_not_plain_are_left_to_aiokafka() -> None:
    many: list[tuple[Any, ...]] = [(b"k", b"v", n, [], 0) for n in range(FEWEST)]
    for batch, codec, expected in ((many, 0, True), (many[1:], 0, False), (many, 1, False)):
        data, _ = written(batch, codec, -1, 0)
        found = PartitionRecords(TP, _Fetched(data), [], 0, None, None, True, READ_COMMITTED)
        fetched = FetchResult(TP, assignment=State(0), partition_records=found, backoff=0)
        assert in_columns(fetched) == expected
        assert len(fetched.getall(None if not expected else 1_000)) == len(batch)


def test_what_the_installation_compiled_serves_batches_of_a_broker() -> None:
    warm()
    events = [Interaction(f"e{n}", "u", "i", 1_700_000_000_000 + n) for n in range(20)]
    values = [
        encode("interaction", {name: getattr(event, name) for name in Interaction.__dataclass_fields__}) for event in events
    ]
    data, _ = written([(b"u", value, n, [], 0) for n, value in enumerate(values)], 0, -1, 100)
    mine = result(_Fetched, data, [], 103)
    assert in_columns(mine)
    chunk = Chunk.of("t", 0, mine.getall(10))
    decoded = decode_interactions(chunk.values, chunk.keys, chunk.headers, chunk.offsets, None, chunk.timestamps)
    assert (decoded.bad, decoded.columns.offset.tolist()) == ([], list(range(103, 113)))
    assert [decoded.columns.text(0, n) for n in range(10)] == [f"e{n}" for n in range(3, 13)]
    assert [len(loop.signatures) for loop in (read_batch, decode_block)] == [1, 1]
