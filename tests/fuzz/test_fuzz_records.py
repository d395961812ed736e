"""Fuzzer of records: every record is used, kept, or refused with a code of the contract; its neighbours are unaffected."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import orjson
import pytest
from aiokafka import partitioner
from fakes import FakeRegistry, KnowsTopics
from fuzzing import fuzz, must_find
from hypothesis import given
from hypothesis import strategies as st

from agents.broadcast.item_stream import Catalogue
from agents.metrics import Metrics
from agents.partitions.users import UserPartition
from agents.requests.parsing import Accepted, Listing, Refused, asks_for_users
from agents.requests.recommend import Recommend
from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline
from models.state.rows import ItemStatRow
from schemas import columns, kernels
from schemas.codec import decode, encode, schema_ids
from schemas.columns import ERASE, Decoded, Placed, decode_interactions, event_of
from schemas.errors import BadEvent, NotReady, RiffleError
from schemas.plain_json import plain_json
from schemas.records import Interaction, Item, Slate, UserPage
from schemas.settings import Settings
from schemas.spans import Spans
from schemas.validation import FUTURE_MS, MAX_USERS, check_time
from streams.archive.archiver import Archiver
from streams.kafka.announce import decode_announcement
from streams.kafka.chunks import Chunk
from streams.kafka.client import page_from, slate_from
from streams.kafka.dead_letters import letter_of
from streams.kafka.writes import USERS

PAGE = (Path(__file__).parents[2] / "docs" / "interface.md").read_text(encoding="utf-8")
CODES = frozenset(re.findall(r"`([a-z_]+)`", PAGE[PAGE.index("## Errors") :]))
SCHEMAS = FakeRegistry.of("interaction", "item", "request", "slate")
SCHEMAS.schemas |= {8: NotReady("registry_unavailable", "away"), 9: '{"type": "record"}', 10: '"null"', 11: "protobuf"}
PARTITIONS = 4
JSON = ("content-type", b"application/json")
START = 1_700_000_000_000

# --- generated records ---------------------------------------------------------------------------------------------------

TEXT = st.text(max_size=12) | st.sampled_from(["u", "i", "ü" * 128, "x" * 256, "x" * 257, "\x00", "𝔘"])
NUMBER = st.integers(-5, 5) | st.sampled_from([2**31, 2**53, 2**63 - 1, -(2**63), 1_000_000, 1_000_001, START])
ODD = (
    st.none()
    | st.booleans()
    | NUMBER
    | st.floats()
    | TEXT
    | st.lists(TEXT, max_size=3)
    | st.dictionaries(TEXT, TEXT, max_size=2)
)
NAMES = ["content-type", "Content-Type", "riffle-op", "deadline-ms", "Faust-Ag-ReplyTo", "Faust-Ag-CorrelationId"]
CONTENTS = [
    *(b"application/json", b" Application/JSON ; charset=utf-8", b"text/plain", b"erase", b"", b"250", b"2_50", b"+250"),
    *(b" 250", b"0", b"60001", b"\xd9\xa3", b"replies", b"riffle.items", b"..", b"__consumer_offsets", b"\xff", b"c" * 2_000),
]
HEADER = st.tuples(st.sampled_from(NAMES) | TEXT, st.none() | st.sampled_from(CONTENTS) | st.binary(max_size=6))
HEADERS = st.lists(HEADER, max_size=3)


def bodies(sound: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Generate valid bodies, some with odd, missing or unknown fields."""
    odd = st.dictionaries(st.sampled_from([*sound, "unknown"]), ODD, max_size=2)
    out = st.sets(st.sampled_from([*sound, ""]), max_size=1)
    plain = st.fixed_dictionaries(sound)
    mixed = st.builds(lambda body, more, less: {k: v for k, v in (body | more).items() if k not in less}, plain, odd, out)
    return plain | mixed


IDS = st.sampled_from(["u", "v", "ann", "bob", "ü", "item-1"])
EVENTS = bodies(
    {
        "event_id": IDS | TEXT,
        "user_id": IDS,
        "item_id": IDS,
        "event_time": st.just(START) | st.integers(0, START + 2 * FUTURE_MS),
        "action": st.sampled_from(["view", "like", "ü"]),
        "value": st.none() | st.floats() | st.integers(-5, 5),
        "session_id": st.none() | IDS,
        "request_id": st.none() | IDS,
        "position": st.none() | st.integers(-1, 1_000_001),
    }
)
ITEMS = bodies(
    {
        "item_id": IDS,
        "title": TEXT,
        "text": TEXT,
        "categories": st.lists(TEXT, max_size=3),
        "image": st.none() | TEXT,
        "price": st.none() | st.floats(),
        "available": st.booleans(),
        "published_at": st.none() | NUMBER,
        "attributes": st.dictionaries(TEXT, TEXT, max_size=2),
    }
)
REQUESTS = bodies(
    {
        "request_id": st.just("") | TEXT,
        "user_id": IDS,
        "k": st.integers(0, 501),
        "context": st.dictionaries(TEXT, TEXT, max_size=2),
        "exclude": st.lists(TEXT, max_size=3),
        "categories": st.lists(TEXT, max_size=3),
        "explain": st.booleans(),
        "after": st.none() | st.fixed_dictionaries({"partition": NUMBER, "offset": NUMBER}),
        "candidates": st.none() | st.lists(TEXT, max_size=3),
        "repeats": st.booleans(),
    }
)


def encoded(name: str, body: dict[str, Any], framing: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    """Encode a body in a framing, in JSON if Avro cannot represent it."""
    if framing != "json":
        try:
            value = encode(name, body)
        except BadEvent:
            framing = "json"
        else:
            if framing == "avro":
                return value, []
            known = SCHEMAS.id_of(name) if name in SCHEMAS.names else 7
            schema = known if framing == "confluent" else int(framing)
            return b"\x00" + schema.to_bytes(4, "big") + value[10:], []
    return orjson.dumps(body, default=repr), [JSON]


def broken_up(value: bytes, at: int, more: bytes, how: str) -> bytes:
    at %= len(value) + 1  # -1 is the end
    if how == "cut":
        return value[:at]
    if how == "put in":
        return value[:at] + more + value[at:]
    if how == "over":
        return value[:at] + more + value[at + len(more) :]
    return value


FRAMINGS = st.sampled_from(["avro", "avro", "json", "json", "confluent", "7", "8", "9", "10", "11"])


def values(name: str, made: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[tuple[bytes | None, list[tuple[str, Any]]]]:
    """Generate values with headers: intact and damaged bodies in any framing, and arbitrary bytes."""
    whole = st.builds(lambda body, framing: encoded(name, body, framing), made, FRAMINGS)
    how = st.sampled_from(["cut", "put in", "over", "whole", "whole"])
    damaged = st.builds(
        lambda one, at, more, how, odd: (broken_up(one[0], at, more, how), [*one[1], *odd]),
        whole,
        st.integers(0, 400),
        st.binary(min_size=1, max_size=4),
        how,
        HEADERS,
    )
    heads = st.sampled_from(
        [b"", b"\x00", b"\x00\x00\x00\x00\x01", b"\xc3\x01", encode("interaction", GOOD)[:10], b"{", b"\x7f"]
    )
    noise = st.builds(lambda head, rest, odd: (head + rest, odd), heads, st.binary(max_size=30), HEADERS)
    nothing = st.builds(lambda odd: (None, odd), HEADERS | st.just([ERASE]))
    return whole | damaged | damaged | noise | nothing


GOOD = {"event_id": "good", "user_id": "good", "item_id": "i", "event_time": START, "action": "view", "value": 1.5}
GOOD_PARTITION = kernels.partition_of(b"good", PARTITIONS)
KEYS = st.none() | st.sampled_from([b"", b"\xff", b"u" * 257, b"5"]) | IDS.map(str.encode) | st.binary(max_size=5)


@dataclass(frozen=True)
class Raw:
    """A record as a consumer returns it."""

    value: bytes | None
    key: bytes | None
    headers: Sequence[tuple[str, Any]]
    timestamp: int


def records(name: str, made: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[Raw]:
    """Generate records, half of them with their correct key."""

    def raw(given: tuple[bytes | None, list[tuple[str, Any]]], key: bytes | None, own: bool, timestamp: int) -> Raw:
        if own and given[0]:
            try:
                body = decode(name, given[0], given[1], SCHEMAS)[0]
                key = str(body.get("user_id") or body.get("item_id")).encode()
            except (RiffleError, UnicodeEncodeError, AttributeError):
                pass
        return Raw(*given[:1], key, given[1], timestamp)

    times = st.just(START) | st.sampled_from([0, START - 2 * FUTURE_MS, -1, 2**62])
    return st.builds(raw, values(name, made), KEYS, st.booleans(), times)


EVENT_RECORDS = records("interaction", EVENTS)
CHUNKS = st.tuples(st.lists(EVENT_RECORDS, min_size=1, max_size=3), st.booleans())

# --- events --------------------------------------------------------------------------------------------------------------

Decoder = Callable[..., Decoded]


def outcome(record: Raw, placed: Placed | None) -> Interaction | str | tuple[str]:
    """Return the general decoder's result for one record: the event, the user to erase, or a code."""
    try:
        found = event_of(record.value, record.key, record.headers, SCHEMAS)
        if isinstance(found, Interaction):
            check_time(found.event_time, record.timestamp)
        if placed is not None and partitioner.DefaultPartitioner()(record.key, range(PARTITIONS), ()) != placed.partition:
            return ("wrong_partition",)
    except RiffleError as exc:
        return (exc.code,)
    return found


def read_alone_and_in_company(decode_chunk: Decoder, case: tuple[list[Raw], bool]) -> None:
    """Check that each record gives the general decoder's result exactly once, and does not affect good records beside it."""
    odd, in_spans = case
    good = Raw(encode("interaction", GOOD), b"good", (), START)
    chunk = list[Raw]()
    for record in odd:
        chunk += [good, record]  # the last has no successor
    given = [r.value for r in chunk]
    keys = [r.key for r in chunk]
    placed = Placed(GOOD_PARTITION, PARTITIONS)
    decoded = decode_chunk(
        Spans.of(given) if in_spans else given,
        Spans.of(keys) if in_spans else keys,
        [r.headers for r in chunk],
        range(len(chunk)),
        SCHEMAS,
        [r.timestamp for r in chunk],
        placed,
    )
    applied = dict(zip(decoded.columns.offset.tolist(), range(len(decoded.columns)), strict=True))
    bad = {one.index: one.code for one in decoded.bad}
    erased = dict(decoded.erasures)
    assert sorted([*applied, *bad, *erased]) == list(range(len(chunk)))
    for n, record in enumerate(chunk):
        expected = outcome(record, placed)
        if isinstance(expected, tuple):
            assert bad[n] == expected[0]
            assert bad[n] in CODES
        elif isinstance(expected, str):
            assert erased[n] == expected
        else:
            assert row(decoded, applied[n]) == of_event(expected)


def row(decoded: Decoded, n: int) -> tuple[object, ...]:
    texts = tuple(decoded.columns.text(column, n) for column in range(4))
    return (*texts, decoded.columns.users[n], int(decoded.columns.event_time[n]), repr(decoded.columns.value[n]))


def of_event(event: Interaction) -> tuple[object, ...]:
    with np.errstate(over="ignore", under="ignore"):
        value = np.float32(np.nan if event.value is None else event.value)
    texts = event.event_id, event.item_id, event.action, event.session_id or ""
    return (*texts, event.user_id.encode(), event.event_time, repr(value))


@fuzz
@given(CHUNKS)
def test_events(case: tuple[list[Raw], bool]) -> None:
    read_alone_and_in_company(decode_interactions, case)


ODD_FIELDS: list[dict[str, Any]] = [
    *({}, {"item_id": "ü"}, {"item_id": "x" * 257}, {"event_time": 2**53}, {"value": 1e300}, {"position": 1_000_001}),
    *({"user_id": "goof"}, {"user_id": "goo"}),
]
AVRO = st.builds(
    lambda odd, at, more, how: Raw(broken_up(encode("interaction", GOOD | odd), at, more, how), b"good", (), 2**62),
    st.sampled_from(ODD_FIELDS),
    st.integers(-1, 60),
    st.sampled_from([b"\xfe", b"\x02", b"\xff\x01"]),
    st.sampled_from(["cut", "put in", "over", "whole"]),
)
SMALL = st.tuples(st.lists(AVRO, min_size=1, max_size=1), st.just(value=False))


def broken(*changes: tuple[str, str]) -> Decoder:
    """Replace loops of the decoder by changed, uncompiled ones."""
    source = inspect.getsource(kernels)
    for before, after in changes:
        assert source.count(before) == 1, before
        source = source.replace(before, after)
    module = ModuleType("broken_kernels")
    exec(re.sub(r"@njit\(.*\)\n", "", source), module.__dict__)
    module.hash_bytes = kernels.hash_bytes  # type: ignore[attr-defined]

    def decode_chunk(*args: Any) -> Decoded:
        with patch.object(columns, "decode_block", module.decode_block), np.errstate(all="ignore"):
            return decode_interactions(*args)

    return decode_chunk


@pytest.mark.parametrize(
    "change",
    [
        ("        if at != end:\n            continue\n        for j in range(3):", "        for j in range(3):"),
        ("length > MAX_ID or at + length > end", "length > MAX_ID"),
        ("if data[i] >= 0x80:", "if False:"),
        ("position < 0 or position > MAX_POSITION", "position < 0"),
        ("if at < 0 or size != key_lengths[i]:", "if at < 0:"),
        ("times[i] >= TIME_LIMIT_MS", "False"),
        ("if not abs(double[0]) <= MAX_VALUE:", "if False:"),
        ("    while at < end and shift < 64:", "    while shift < 64:"),
    ],
)
def test_loops_without_one_of_their_checks_are_found(change: tuple[str, str]) -> None:
    must_find(read_alone_and_in_company, broken(change), SMALL)


def test_a_decoder_that_lets_a_record_fail_its_chunk_is_found() -> None:
    def decode_chunk(given: Any, keys: Any, headers: Any, offsets: Any, *rest: Any) -> Decoded:
        for value, head in zip(given, headers, strict=True):
            schema_ids([value], [head])
            if value is not None:
                decode("interaction", value, head, SCHEMAS)
        return decode_interactions(given, keys, headers, offsets, *rest)

    must_find(read_alone_and_in_company, decode_chunk, SMALL)


TWICE = st.builds(
    lambda heads: Raw(orjson.dumps(GOOD), b"good", heads, START),
    st.lists(st.sampled_from([JSON, ("content-type", b"text/plain"), ("x", b"")])),
)


def plain_as_general(plain: Callable[..., tuple[int, bytes] | None], record: Raw) -> None:
    found = plain(record.value, record.key, record.headers)
    if found is not None:
        event = event_of(record.value, record.key, record.headers)
        assert isinstance(event, Interaction)
        assert found == (event.event_time, encode("interaction", asdict(event)))


@fuzz
@given(EVENT_RECORDS | TWICE)
def test_plain_json_is_what_the_general_decoder_reads(record: Raw) -> None:
    plain_as_general(plain_json, record)


def test_a_plain_reader_of_whatever_says_json_somewhere_is_found() -> None:
    def first(value: bytes | None, key: bytes | None, head: Sequence[tuple[str, bytes]]) -> tuple[int, bytes] | None:
        return plain_json(value, key, [JSON] if JSON in head else [])

    must_find(plain_as_general, first, TWICE)


def same_partition(partition_of: Callable[[bytes, int], int], case: tuple[bytes, int]) -> None:
    key, partitions = case
    assert partition_of(key, partitions) == partitioner.DefaultPartitioner()(key, list(range(partitions)), ())


KEYED = st.tuples(st.binary(max_size=20) | st.binary(min_size=200, max_size=300), st.integers(1, 300))


@fuzz
@given(KEYED)
def test_a_key_belongs_where_every_client_puts_it(case: tuple[bytes, int]) -> None:
    same_partition(kernels.partition_of, case)
    found = kernels.partitions_of(*spans([case[0], None, case[0]]), case[1])
    assert found.tolist() == [kernels.partition_of(*case), kernels.NULL, kernels.partition_of(*case)]


def spans(keys: Sequence[bytes | None]) -> tuple[Any, Any, Any]:
    made = Spans.of([b"before", *keys])
    return np.frombuffer(made.data, np.uint8), made.starts[1:], made.lengths[1:]


def test_a_hash_without_its_tail_is_found() -> None:
    must_find(same_partition, lambda key, n: kernels.partition_of(key[: len(key) & ~3], n), KEYED)


# --- the archive's rows -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archiver(tmp_path_factory: pytest.TempPathFactory) -> Archiver:
    return Archiver(Settings(home=tmp_path_factory.mktemp("archive"), partitions=PARTITIONS), SCHEMAS)


def archived(archiver: Archiver, topic: str, record: Raw) -> dict[str, Any] | str:
    """Return the archive's row, or a code."""
    full = SimpleNamespace(topic=f"riffle.{topic}", partition=GOOD_PARTITION, offset=7, **asdict(record))
    try:
        return archiver._row(full)
    except RiffleError as exc:
        return exc.code


@fuzz
@given(record=EVENT_RECORDS)
def test_the_archive_takes_what_the_worker_takes(archiver: Archiver, record: Raw) -> None:
    expected, found = outcome(record, Placed(GOOD_PARTITION, PARTITIONS)), archived(archiver, "interactions", record)
    if isinstance(expected, tuple):
        assert found == expected[0]
    elif isinstance(expected, str):
        assert isinstance(found, dict)
        assert (found["user_id"], found["_removed"]) == (expected, True)
    else:
        assert isinstance(found, dict)
        assert repr({name: found[name] for name in asdict(expected)}) == repr(asdict(expected))


ITEM_RECORDS = records("item", ITEMS)


@fuzz
@given(record=ITEM_RECORDS)
def test_the_catalogue_goes_on_whatever_an_entry_is(archiver: Archiver, record: Raw) -> None:
    async def heard() -> None:
        store, metrics = ItemStore(PARTITIONS), Metrics()
        catalogue = Catalogue(store, metrics, SCHEMAS)
        good = encode("item", asdict(Item("good")))
        given, heads = [good, record.value, good], [(), record.headers, ()]
        chunk = Chunk("items", 0, range(3), [b"1", record.key, b"2"], given, [0] * 3, heads)
        await catalogue.on_items(chunk)
        assert store.available[store.row_of("good")]
        kept = len(catalogue._kept)
        applied = int(metrics.items.value(outcome="applied"))
        row = archived(archiver, "items", record)
        if isinstance(row, dict):
            assert (applied, kept) == (3, 0)
            assert row["_removed"] == (not record.value)
        elif row == "registry_unavailable":
            assert (applied, kept) == (2, 1)
        else:
            assert (applied, kept) == (2, 0)
            assert metrics.items.value(outcome="rejected", code=row) == 1
            assert row in CODES
        for task in catalogue._waiting.values():
            task.cancel()

    asyncio.run(heard())


# --- requests ------------------------------------------------------------------------------------------------------------

TOPICS = st.sampled_from([b"replies", b"replies", b"riffle.items", b"..", b"", b"\xff"])
HEARD = st.lists(st.tuples(st.just("Faust-Ag-ReplyTo"), TOPICS), max_size=2)
REQUEST_RECORDS = st.builds(
    lambda one, heard: Raw(one.value, one.key, [*heard, *one.headers], one.timestamp), records("request", REQUESTS), HEARD
)


class Known(KnowsTopics):
    """A producer whose outbox is looked at."""

    async def send(
        self, topic: str, value: bytes | None, key: bytes | None = None, headers: Sequence[tuple[str, bytes]] = ()
    ) -> asyncio.Future[Any]:
        raise AssertionError("what an outbox holds is looked at, and not sent")


@fuzz
@given(REQUEST_RECORDS, st.sets(st.integers(0, PARTITIONS - 1)))
def test_each_request_waits_for_its_turn_or_has_one_answer(record: Raw, owned: set[int]) -> None:
    recommend = Recommend(
        Settings(partitions=PARTITIONS),
        cast("CandidatePipeline", None),  # nothing is ranked
        cast("dict[int, UserPartition]", dict.fromkeys(owned)),  # the code only asks whether they are owned
        Known(),
        Metrics(),
        SCHEMAS,
    )
    chunk = Chunk("riffle.requests", 0, [7], [record.key], [record.value], [record.timestamp], [record.headers])
    recommend._offsets.take_in(chunk)
    parsed, answered = recommend._parser.parse(chunk, 0), recommend._offsets.answered(chunk, 0)
    pending = parsed if isinstance(parsed, Accepted) else None
    if isinstance(parsed, Refused):
        recommend._refuse(parsed, chunk, 0, answered)
    letters = [*recommend._outbox._queue, *recommend._outputs._queue]
    assert recommend.committable() == {0: 7}, "it is answered when its record is sent"
    last = dict(record.headers)
    if pending is not None:
        assert not letters
        assert pending.partition == kernels.partition_of(pending.request.user_id.encode(), PARTITIONS)
        assert pending.partition in owned | {0}
        assert re.fullmatch(rb"[0-9]{1,5}", last.get("deadline-ms") or b"250")
        assert 0 < len(pending.request.request_id.encode()) <= 256
        slate = Slate(pending.request.request_id, pending.request.user_id, (), "none", "default")
        recommend._replies.send(pending.address, slate, answered)
        letters = [*recommend._outbox._queue]
    assert len(letters) == 1
    letter = letters[0]
    if letter.what == "dead_letter":
        assert decode("dead_letter", letter.encoded())[0]["code"] in CODES
        return
    assert letter.topic.encode() == last["Faust-Ag-ReplyTo"]
    assert not letter.topic.startswith(("riffle.", "..", "__"))
    assert dict(letter.headers)["Faust-Ag-CorrelationId"] == (last.get("Faust-Ag-CorrelationId") or b"")
    try:
        slate_from(letter.encoded(), letter.headers, SCHEMAS)
    except RiffleError as exc:
        assert pending is None
        assert exc.code in CODES - {"unreadable_reply"}
    else:
        assert pending is not None


QUERIES = st.builds(
    lambda body, one: Raw(json.dumps(body).encode(), one.key, one.headers, one.timestamp),
    bodies({"after": TEXT, "limit": st.integers(-1, 502)}),
    REQUEST_RECORDS,
)


@fuzz
@given(QUERIES | REQUEST_RECORDS)
def test_each_query_for_users_is_read_or_has_one_answer(record: Raw) -> None:
    recommend = Recommend(Settings(), cast("CandidatePipeline", None), {}, Known(), Metrics(), SCHEMAS)
    headers = [*record.headers, USERS]
    chunk = Chunk("riffle.requests", 0, [7], [record.key], [record.value], [record.timestamp], [headers])
    assert asks_for_users(headers)
    recommend._offsets.take_in(chunk)
    parsed, answered = recommend._parser.parse_listing(chunk, 0), recommend._offsets.answered(chunk, 0)
    if isinstance(parsed, Listing):
        assert 1 <= parsed.query.limit <= MAX_USERS
        assert len(parsed.query.after.encode()) <= 256
        recommend._replies.send(parsed.address, UserPage(0, 4, ("a",), None), answered)
    else:
        recommend._refuse(parsed, chunk, 0, answered)
    (letter,) = [*recommend._outbox._queue, *recommend._outputs._queue]
    assert recommend.committable() == {0: 7}, "it is answered when its record is sent"
    if letter.what == "dead_letter":
        assert decode("dead_letter", letter.encoded())[0]["code"] in CODES
        return
    assert letter.topic.encode() == dict(record.headers)["Faust-Ag-ReplyTo"]
    try:
        assert page_from(letter.encoded(), letter.headers, SCHEMAS) == UserPage(0, 4, ("a",), None)
    except RiffleError as exc:
        assert not isinstance(parsed, Listing)
        assert exc.code in CODES - {"unreadable_reply"}


# --- replies and Riffle's own topics -------------------------------------------------------------------------------------

NUMBERS = st.floats() | st.integers(-(2**63), 2**63 - 1)
SLATES = bodies(
    {
        "request_id": TEXT,
        "user_id": TEXT,
        "items": st.lists(
            st.fixed_dictionaries(
                {"item_id": TEXT, "score": NUMBERS, "sources": st.lists(TEXT, max_size=2), "explanation": ODD}
            )
            | st.dictionaries(TEXT, ODD, max_size=2)
            | ODD,
            max_size=2,
        ),
        "release": TEXT,
        "arm": TEXT,
        "degraded": st.lists(TEXT, max_size=2),
        "as_of": st.none() | st.fixed_dictionaries({"partition": NUMBER, "offset": NUMBER, "event_time": NUMBER}) | ODD,
        "timings_ms": st.dictionaries(TEXT, st.floats(), max_size=2) | ODD,
        "error": st.none() | st.fixed_dictionaries({"code": TEXT, "message": TEXT, "field": st.none() | TEXT}) | ODD,
    }
)


def reply(body: dict[str, Any], framing: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    return encoded("slate", body, framing) if framing != "json" else (orjson.dumps({"value": body}), [JSON])


REPLIES = st.builds(reply, SLATES, FRAMINGS) | values("slate", SLATES)


def a_slate_or_an_error(read: Callable[..., Slate], case: tuple[bytes | None, list[tuple[str, bytes]]]) -> None:
    try:
        slate = read(*case, SCHEMAS)
    except RiffleError:
        return
    assert isinstance(slate, Slate)
    assert all(isinstance(item.item_id, str) and isinstance(item.score, float) for item in slate.items)
    orjson.dumps(slate.to_json())


@fuzz
@given(REPLIES)
def test_a_reply_is_a_slate_or_an_error(case: tuple[bytes | None, list[tuple[str, bytes]]]) -> None:
    a_slate_or_an_error(slate_from, case)


LONG = st.integers(-(2**63), 2**63 - 1)
STATISTICS = st.fixed_dictionaries(
    {
        "item_id": IDS | TEXT,
        "partition": st.integers(-1, PARTITIONS),
        "offset": LONG,
        "counts": st.dictionaries(TEXT, LONG | st.integers(0, 5), max_size=3),
        "value_sum": st.floats(),
        "value_count": LONG,
        "popularity": st.floats(),
        "updated_at": LONG | st.just(START),
        "first_at": LONG | st.just(START),
    }
)
NEIGHBOURS = st.fixed_dictionaries(
    {
        "item_id": IDS | TEXT,
        "others": st.lists(IDS, max_size=4),
        "weights": st.lists(st.floats(), max_size=4),
        "total": st.floats(),
    }
)
VECTOR = st.fixed_dictionaries(
    {
        "modality": st.sampled_from(["text", "image"]) | TEXT,
        "encoder": st.sampled_from(["a", "b"]),
        "content_sha256": st.binary(max_size=4),
        "values": st.binary(max_size=8),
    }
)
VECTORS = st.fixed_dictionaries({"item_id": IDS | TEXT, "vectors": st.lists(VECTOR, max_size=3)})
ANNOUNCEMENTS = st.fixed_dictionaries(
    {"release": TEXT, "uri": TEXT, "manifest_sha256": TEXT, "alias": TEXT, "published_at": LONG}
)
OWN: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "item_statistics": STATISTICS,
    "neighbours": NEIGHBOURS,
    "item_vectors": VECTORS,
}


@fuzz
@given(st.sampled_from(sorted(OWN)).flatmap(lambda name: st.tuples(st.just(name), values(name, OWN[name]), KEYS)))
def test_a_worker_reads_on_whatever_lies_on_its_own_topics(case: tuple[str, tuple[bytes | None, Any], bytes | None]) -> None:
    name, (value, headers), key = case
    store = ItemStore(PARTITIONS)
    catalogue = Catalogue(store, Metrics())
    handler = {
        "item_statistics": catalogue.on_statistics,
        "neighbours": catalogue.on_neighbours,
        "item_vectors": catalogue.on_vectors,
    }[name]
    handler(Chunk(name, 0, [7], [key], [value], [0], [headers]))
    store.set_statistics("good", 1, ItemStatRow({"view": 1}, 0.0, 0, 1.0, START, START))
    assert 0 <= store.stream_time_ms < 2**53
    assert np.isfinite(store.popularity).all()
    assert np.isfinite(store.value_sum).all()
    assert np.isfinite(store.neighbour_weights).all()
    assert np.isfinite(store.neighbour_total).all()
    assert (store.events >= 0).all()
    assert (store.actions >= 0).all()


@fuzz
@given(values("release_announcement", ANNOUNCEMENTS))
def test_an_announcement_is_read_or_refused(given_: tuple[bytes | None, Any]) -> None:
    try:
        decode_announcement(given_[0])
    except BadEvent as exc:
        assert exc.code in CODES


@fuzz
@given(EVENT_RECORDS, st.lists(HEADER, max_size=60), TEXT, TEXT, st.integers(0, 300_000))
def test_a_dead_letter_holds_what_it_was_made_of(record: Raw, more: Any, code: str, reason: str, size: int) -> None:
    headers = [*record.headers, *more]
    value = None if record.value is None else record.value + bytes(size)
    key, letter = letter_of(("riffle.interactions", 1, 7, record.timestamp), code, reason, record.key, value, headers)
    read = decode("dead_letter", letter)[0]
    assert len(letter) < 900_000
    assert (read["code"], read["key"], key or None) == (code, record.key, record.key or None)
    assert read["value"] == (None if value is None else value[: 256 << 10])
    assert read["headers"] == {name[:256]: (content or b"")[:1024] for name, content in headers[:50]}
