"""Laws of framing and coding."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import avro.io
import avro.schema
import numpy as np
import orjson
import pytest
from fakes import FakeRegistry
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import NAMES, Framing, decode, encode, fingerprint, load, schema_text
from schemas.columns import ERASE, decode_interactions
from schemas.compatibility import check_all, incompatibilities
from schemas.errors import BadEvent, BadInput, BadRequest, NotReady
from schemas.kernels import TIME_LIMIT_MS
from schemas.parsing import MAX_TIME_MS
from schemas.plain_json import plain_json
from schemas.records import Interaction
from schemas.validation import FUTURE_MS, interaction_from, item_from, request_from

GOLDEN = Path(__file__).parent / "golden.json"
IDS = st.text(min_size=1, max_size=20).filter(lambda text: text.encode("utf-8", "ignore").decode() == text)
EVENTS = st.fixed_dictionaries(
    {
        "event_id": IDS,
        "user_id": IDS,
        "item_id": IDS,
        "event_time": st.integers(0, 2**53 - 1),
        "action": IDS,
        "value": st.none() | st.floats(-1e6, 1e6),
        "session_id": st.none() | IDS,
        "request_id": st.none() | IDS,
        "position": st.none() | st.integers(0, 1_000_000),
    }
)


def example(schema: Any, depth: int = 0) -> Any:
    """Return a fixed datum of a schema."""
    if isinstance(schema, list):
        return example(schema[-1], depth)
    kind = schema["type"] if isinstance(schema, dict) else schema
    if kind == "record":
        return {field["name"]: example(field["type"], depth + 1) for field in schema["fields"]}
    if kind == "array":
        return [example(schema["items"], depth + 1)]
    if kind == "map":
        return {"k": example(schema["values"], depth + 1)}
    plain = {"string": "ü", "long": 1_700_000_000_000, "int": 7, "boolean": True, "bytes": b"\x00\xff"}
    return plain.get(kind, 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_golden_bytes(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    datum = example(json.loads(schema_text(name)))
    assert encode(name, datum).hex() == golden[name]
    assert decode(name, bytes.fromhex(golden[name]))[0] == datum


def test_requests_of_clients_that_know_no_repeats_are_read() -> None:
    """The bytes are those of a client that was built before the field."""
    written = "c30185d28b48f24fc05b04c3bc04c3bc0e02026b04c3bc000204c3bc000204c3bc0001020e80a0abfef962020204c3bc00"
    found, _ = decode("request", bytes.fromhex(written))
    assert found == {**example(json.loads(schema_text("request"))), "repeats": False}
    assert request_from(found, request_id="r").repeats is False


@pytest.mark.parametrize("name", NAMES)
def test_fastavro_equals_apache_avro(name: str) -> None:
    datum = example(json.loads(schema_text(name)))
    schema = avro.schema.parse(schema_text(name))
    out = io.BytesIO()
    avro.io.DatumWriter(schema).write(datum, avro.io.BinaryEncoder(out))
    encoded = encode(name, datum)
    assert encoded[10:] == out.getvalue()
    assert encoded[:10] == b"\xc3\x01" + schema.fingerprint()
    assert avro.io.DatumReader(schema).read(avro.io.BinaryDecoder(io.BytesIO(encoded[10:]))) == datum


@given(EVENTS)
def test_every_framing_decodes_to_the_same_event(datum: dict[str, Any]) -> None:
    registry = FakeRegistry.of("interaction")
    wanted = interaction_from(datum)
    for framing in Framing:
        value = encode("interaction", datum, framing, registry)
        headers = [("content-type", b"application/json")] if framing is Framing.JSON else []
        decoded, found = decode("interaction", value, headers, registry)
        assert found is framing
        assert interaction_from(decoded) == wanted


@given(st.binary(max_size=80), st.booleans())
def test_random_bytes_raise_nothing_but_bad_event(value: bytes, as_json: bool) -> None:
    headers = [("content-type", b"application/json")] if as_json else []
    for prefix in (b"", b"\xc3\x01" + fingerprint(load("interaction"))):
        try:
            interaction_from(decode("interaction", prefix + value, headers)[0])
        except BadEvent as exc:
            assert exc.code


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda c: st.lists(c) | st.dictionaries(st.text(), c),
    )
)
def test_any_json_is_accepted_or_refused_with_a_field(body: Any) -> None:
    for parse in (interaction_from, item_from, lambda b: request_from(b, request_id="r")):
        if isinstance(body, dict):
            try:
                parse(body)
            except BadInput as exc:
                assert exc.field is not None


@given(st.lists(st.tuples(EVENTS, st.sampled_from(["ok", "garbage", "null", "nokey", "badkey", "erase"])), max_size=20))
def test_a_bad_record_never_changes_its_neighbours(rows: list[tuple[dict[str, Any], str]]) -> None:
    values: list[bytes | None] = []
    keys: list[bytes | None] = []
    headers: list[list[tuple[str, bytes]]] = []
    for datum, kind in rows:
        values.append({"garbage": b"\x07nope", "null": None, "erase": None}.get(kind, encode("interaction", datum)))
        keys.append({"nokey": None, "badkey": b"\xff"}.get(kind, datum["user_id"].encode()))
        headers.append([ERASE] if kind == "erase" else [])
    decoded = decode_interactions(values, keys, headers, range(len(rows)))
    good = [n for n, (_, kind) in enumerate(rows) if kind == "ok"]
    assert decoded.columns.offset.tolist() == good
    assert [decoded.columns.text(0, n) for n in range(len(good))] == [rows[n][0]["event_id"] for n in good]
    assert [n for n, _ in decoded.erasures] == [n for n, (_, kind) in enumerate(rows) if kind == "erase"]
    assert len(decoded.bad) + len(decoded.erasures) + len(good) == len(rows)


def test_todays_schemas_read_what_was_written_before() -> None:
    assert check_all() == {}


def test_an_incompatible_change_is_noticed() -> None:
    schema = json.loads(schema_text("interaction"))
    schema["fields"].append({"name": "needed", "type": "string"})
    assert incompatibilities(json.dumps(schema), schema_text("interaction"))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"user_id": "u", "k": 501}, "k"),
        ({"user_id": "u", "exclude": ["x"] * 10_001}, "exclude"),
        ({"user_id": "u", "candidates": "abc"}, "candidates"),
        ({"user_id": ""}, "user_id"),
        ({"user_id": "u", "surprise": 1}, "surprise"),
        ({"user_id": "u", "after": {"partition": 0}}, "after"),
        ({"user_id": "u", "context": ["tv"]}, "context"),
        ({"user_id": "u", "context": {"device": ["tv"]}}, "context"),
        ({"user_id": "u", "context": {"x" * 257: "tv"}}, "context"),
        ({"user_id": "u", "context": {"": "tv"}}, "context"),
        ({"user_id": "u", "context": {"device": "x" * 4_097}}, "context"),
        ({"user_id": "u", "context": {f"n{n}": "x" for n in range(101)}}, "context"),
        ({"user_id": "u", "context": {"device": "\ud800"}}, "context"),
    ],
)
def test_requests_are_bounded(body: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        request_from(body, request_id="r")
    assert caught.value.field == field


def test_a_context_says_the_same_in_json_as_in_a_query_string() -> None:
    plain = {"page": 3, "share": 0.5, "home": True, "night": False, "device": "TV"}
    said = {"page": "3", "share": "0.5", "home": "true", "night": "false", "device": "TV"}
    assert request_from({"user_id": "u", "context": plain}, request_id="r").context == said


def test_iso_times_and_milliseconds_are_the_same_moment() -> None:
    base = {"user_id": "u", "item_id": "i"}
    iso = interaction_from({**base, "event_time": "2023-11-14T22:13:20Z"})
    assert iso == interaction_from({**base, "event_time": 1_700_000_000_000})
    assert orjson.loads(encode("interaction", {**base, "event_time": 1}, Framing.JSON))["event_time"] == 1


@pytest.mark.parametrize("answer", ['{"type": "object"}', "syntax = proto3;", '{"type": "record"}', KeyError(1)])
def test_a_writer_schema_that_is_not_avro_is_a_bad_event(answer: str | Exception) -> None:
    with pytest.raises(BadEvent) as caught:
        decode("interaction", b"\x00\x00\x00\x00\x01abc", (), FakeRegistry({1: answer}))
    assert caught.value.code == "unknown_schema"


NODE = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
EMPTY = {"type": "record", "name": "Empty", "fields": [{"name": "nothing", "type": "null"}]}


@pytest.mark.parametrize(
    ("kind", "rest"),
    [
        (NODE, b"\x02" * 900_000 + b"\x00"),
        ({"type": "map", "values": NODE}, b"\x00"),
        ({"type": "array", "items": "null"}, b"\xfe\xff\xff\xff\xff\x1f\x00"),
        (["null", {"type": "array", "items": EMPTY}], b"\x02\xfe\xff\xff\xff\xff\x1f\x00"),
        ({"type": "array", "items": {"type": "fixed", "name": "None", "size": 0}}, b"\xfe\xff\xff\xff\xff\x1f\x00"),
    ],
)
def test_a_registered_schema_that_could_end_the_process_is_refused(kind: Any, rest: bytes) -> None:
    """fastavro skips an unknown field with as many calls or iterations as the bytes declare."""
    schema = json.loads(schema_text("interaction"))
    schema["fields"].append({"name": "more", "type": kind})
    value = encode("interaction", {"event_id": "e", "user_id": "u", "item_id": "i", "event_time": 5})
    with pytest.raises(BadEvent) as refused:
        decode("interaction", b"\0\0\0\0\1" + value[10:] + rest, (), FakeRegistry({1: json.dumps(schema)}))
    assert refused.value.code == "unknown_schema"


@pytest.mark.parametrize("kind", ["string", {"type": "array", "items": ["null", "string"]}, {"type": "map", "values": "null"}])
def test_a_field_that_riffle_does_not_know_is_skipped(kind: Any) -> None:
    schema = json.loads(schema_text("interaction"))
    schema["fields"].append({"name": "more", "type": kind})
    value = encode("interaction", {"event_id": "e", "user_id": "u", "item_id": "i", "event_time": 5})
    read = decode("interaction", b"\0\0\0\0\1" + value[10:] + b"\0", (), FakeRegistry({1: json.dumps(schema)}))
    assert read[0]["item_id"] == "i"


def test_a_registry_without_an_answer_is_no_reason_to_refuse_a_record() -> None:
    with pytest.raises(NotReady):
        decode("item", b"\x00\x00\x00\x00\x07abc", (), FakeRegistry({7: NotReady("registry_unavailable", "away")}))


@pytest.mark.parametrize("value", [10**400, -(10**400), 1e39, float("nan"), float("inf")])
def test_a_value_beyond_float32_is_refused(value: float) -> None:
    with pytest.raises(BadEvent):
        interaction_from({"user_id": "u", "item_id": "i", "event_time": 1, "value": value})


def test_an_event_from_the_future_is_a_bad_record() -> None:
    """One producer that sends microseconds must not decay all popularity to zero."""
    now = 1_700_000_000_000
    times = [now, now + FUTURE_MS, now + FUTURE_MS + 1, now * 1000]
    events = [{"event_id": f"e{n}", "user_id": "u", "item_id": "i", "event_time": time} for n, time in enumerate(times)]
    values = [encode("interaction", event) for event in events]
    decoded = decode_interactions(values, [b"u"] * 4, [()] * 4, range(4), timestamps=[now] * 4)
    assert decoded.columns.offset.tolist() == [0, 1]
    assert [(bad.index, bad.code) for bad in decoded.bad] == [(2, "future_event_time"), (3, "future_event_time")]


def test_the_compiled_and_the_general_decoder_agree() -> None:
    """Each event alone, in every framing, gives the same columns."""
    events = [
        {"event_id": "e", "user_id": "ann", "item_id": "i", "event_time": 5, "action": "rate", "value": 4.5, "session_id": "s"},
        {"event_id": "é" * 100, "user_id": "ann", "item_id": "ž", "event_time": 0, "request_id": "r", "position": 3},
        {"event_id": "e" * 256, "user_id": "ann", "item_id": "i" * 256, "event_time": 2**53 - 1, "value": -3e38},
    ]
    for event in events:
        avro = decode_interactions([encode("interaction", event)], [b"ann"], [()], [7])
        plain = decode_interactions([json.dumps(event).encode()], [b"ann"], [[("content-type", b"application/json")]], [7])
        assert not avro.bad
        assert not plain.bad
        for column in range(4):
            assert avro.columns.text(column, 0) == plain.columns.text(column, 0)
        assert avro.columns.hashes.tolist() == plain.columns.hashes.tolist()
        assert avro.columns.event_time.tolist() == [event["event_time"]]
        assert np.array_equal(avro.columns.value, plain.columns.value, equal_nan=True)


ODD: st.SearchStrategy[object] = st.sampled_from(
    [None, "", "x" * 65, 5, 2.5, -1, True, [], {}, "2026-01-01T00:00:00Z", 2**60, 1e300]
)
NAMED = st.sampled_from(sorted(Interaction.__dataclass_fields__))


@given(EVENTS, st.dictionaries(NAMED | st.just("unknown"), ODD, max_size=2), st.sets(NAMED, max_size=2), st.booleans())
def test_plain_json_is_what_the_general_decoder_makes_of_it(
    event: dict[str, Any], odd: dict[str, Any], left_out: set[str], other_key: bool
) -> None:
    given = {name: value for name, value in (event | odd).items() if name not in left_out}
    key = b"another" if other_key else str(given.get("user_id") or "nobody").encode()
    value, header = orjson.dumps(given), [("content-type", b"application/json")]
    plain = plain_json(value, key, header)
    try:
        expected = interaction_from(given)
    except BadEvent:
        assert plain is None
        return
    if plain is not None:
        assert expected.user_id.encode() == key
        fields = {name: getattr(expected, name) for name in Interaction.__dataclass_fields__}
        assert plain == (expected.event_time, encode("interaction", fields))
    elif not odd and not left_out and not other_key:
        raise AssertionError("a plain event is read the slow way")


@given(st.binary(max_size=80), st.integers(0, 60))
def test_damaged_avro_is_bad_or_read_as_the_general_decoder_reads_it(noise: bytes, cut: int) -> None:
    good = encode("interaction", {"event_id": "e", "user_id": "u", "item_id": "i", "event_time": 5, "value": 1.0})
    for value in (good[:cut] + noise, good[:10] + noise, good[: len(good) - cut % len(good)]):
        decoded = decode_interactions([value], [b"u"], [()], [0])
        assert len(decoded.columns) + len(decoded.bad) == 1
        try:
            expected = interaction_from(decode("interaction", value)[0])
        except BadEvent:
            assert decoded.bad
        else:
            assert bool(decoded.bad) == (expected.user_id != "u")


@given(st.lists(st.booleans(), min_size=40, max_size=40), EVENTS)
def test_the_content_type_header_has_no_case(upper: list[bool], event: dict[str, Any]) -> None:
    letters = iter(upper)
    name, kind = ("".join(c.upper() if next(letters) else c for c in text) for text in ("content-type", "application/json"))
    value = orjson.dumps(event)
    headers = [(name, f"{kind}; charset=utf-8".encode())]
    assert decode("interaction", value, headers) == (orjson.loads(value), Framing.JSON)
    decoded = decode_interactions([value], [event["user_id"].encode()], [headers], [0])
    assert (len(decoded.columns.event_time), decoded.bad) == (1, [])


@given(EVENTS, st.integers(1, 9), st.binary(min_size=1, max_size=9))
def test_what_breaks_off_and_what_goes_on_are_told_apart(event: dict[str, Any], cut: int, more: bytes) -> None:
    value = encode("interaction", event)
    for bytes_, code in ((value[:-cut], "truncated"), (value + more, "trailing_bytes")):
        with pytest.raises(BadEvent) as refused:
            decode("interaction", bytes_)
        assert refused.value.code == code


@given(st.integers(-(2**60), 2**60))
def test_whole_numbers_are_ids_wherever_ids_stand(number: int) -> None:
    text = str(number)
    request = request_from({"user_id": number, "exclude": [number], "candidates": [number, text]}, request_id="r")
    assert (request.user_id, request.exclude, request.candidates) == (text, (text,), (text, text))
    item = item_from({"item_id": number, "title": number, "categories": [number]})
    assert (item.item_id, item.title, item.categories) == (text, text, (text,))


@pytest.mark.parametrize("odd", [1.5, True, [1], {"a": 1}])
def test_an_id_of_another_kind_is_told_what_it_may_be(odd: object) -> None:
    with pytest.raises(BadRequest, match="user_id must be a string or a whole number"):
        request_from({"user_id": odd}, request_id="r")
    with pytest.raises(BadRequest, match="whole number"):
        request_from({"user_id": "u", "exclude": [odd]}, request_id="r")


@given(st.integers(2**64, 10**40).flatmap(lambda number: st.sampled_from([number, -number])))
def test_a_number_of_which_digits_are_lost_is_said_to_be_too_long(number: int) -> None:
    for field, body in (
        ("user_id", {"user_id": number}),
        ("request_id", {"user_id": "u", "request_id": number}),
        ("exclude", {"user_id": "u", "exclude": ["i1", number]}),
        ("candidates", {"user_id": "u", "candidates": [number]}),
        ("k", {"user_id": "u", "k": number}),
        ("after.offset", {"user_id": "u", "after": {"partition": 0, "offset": number}}),
    ):
        with pytest.raises(BadRequest, match="64 bits") as refused:
            request_from(orjson.loads(json.dumps(body)), request_id="r")
        assert refused.value.field == field
        assert refused.value.message.find(field) >= 0
    with pytest.raises(BadEvent, match="item_id is a number beyond 64 bits"):
        interaction_from(orjson.loads(json.dumps({"user_id": "u", "item_id": number})), now_ms=1)


PLAIN_TEXT = ("content-type", b"text/plain")
AS_JSON = ("content-type", b"application/json")


@pytest.mark.parametrize(
    ("headers", "framing"),
    [
        ([AS_JSON], Framing.JSON),
        ([PLAIN_TEXT, AS_JSON], Framing.JSON),
        ([AS_JSON, PLAIN_TEXT], None),
        ([AS_JSON, ("Content-Type", None)], None),
        ([AS_JSON, ("x", b"y")], Framing.JSON),
        ([("CONTENT-TYPE", b" application/JSON ;charset=latin-1")], Framing.JSON),
        ([("content-type ", b"application/json")], None),
    ],
)
def test_of_several_content_types_the_last_counts(headers: list[tuple[str, Any]], framing: Framing | None) -> None:
    event = {"event_id": "e", "user_id": "u", "item_id": "i", "event_time": 5, "action": "view"}
    for value in (orjson.dumps(event), encode("interaction", event)):
        decoded = decode_interactions([value], [b"u"], [headers], [0])
        expected = framing is Framing.JSON if value[:1] == b"{" else framing is None
        assert (len(decoded.columns), len(decoded.bad)) == (int(expected), int(not expected))


@pytest.mark.parametrize(
    ("headers", "erases"),
    [
        ([ERASE], True),
        ([("riffle-op", b"x"), ERASE], True),
        ([ERASE, ("riffle-op", None)], False),
        ([("Riffle-Op", b"erase")], False),
    ],
)
def test_of_several_operations_the_last_counts(headers: list[tuple[str, Any]], erases: bool) -> None:
    decoded = decode_interactions([None], [b"u"], [headers], [0])
    assert decoded.erasures == ([(0, "u")] if erases else [])
    assert [bad.code for bad in decoded.bad] == ([] if erases else ["null_value"])


@pytest.mark.parametrize("key", [b"", b"k" * 257, b"\xff"])
def test_nobody_is_erased_by_a_key_that_is_no_id(key: bytes) -> None:
    assert [bad.code for bad in decode_interactions([None], [key], [[ERASE]], [0]).bad] == ["invalid_key"]


def test_an_erasure_has_no_value_or_an_empty_one() -> None:
    event = encode("interaction", {"event_id": "e", "user_id": "u", "item_id": "i", "event_time": 5, "action": "view"})
    decoded = decode_interactions([None, b"", event, b"{}"], [b"u"] * 4, [[ERASE]] * 4, [0, 1, 2, 3])
    assert decoded.erasures == [(0, "u"), (1, "u")]
    assert [(bad.index, bad.code) for bad in decoded.bad] == [(2, "invalid_field"), (3, "invalid_field")]
    assert not len(decoded.columns)


def test_compiled_loops_take_the_same_times_as_the_parsers() -> None:
    assert TIME_LIMIT_MS == MAX_TIME_MS
