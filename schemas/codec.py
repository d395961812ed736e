"""Framing and coding of stream records: Avro single-object encoding, Confluent wire format, JSON.

A record alone determines its framing: JSON has the header `content-type: application/json`, Confluent framing starts with
byte 0x00 and a 4-byte schema id, single-object encoding with 0xC3 0x01 and the schema's little-endian CRC-64-AVRO fingerprint
(Avro 1.12 specification, "Single-object encoding").
"""

from __future__ import annotations

import contextlib
import enum
import functools
import io
import json
import math
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import fastavro
import orjson

from schemas.errors import BadEvent
from schemas.parsing import json_fault
from schemas.spans import Spans

__all__ = [
    "NAMES",
    "Framing",
    "Registry",
    "decode",
    "decode_newer",
    "encode",
    "encoding",
    "fingerprint",
    "framing_of",
    "header",
    "header_of",
    "is_json",
    "is_plain",
    "load",
    "look_up",
    "prefix",
    "schema_ids",
    "schema_text",
]

FOLDER = Path(__file__).parent
NAMES = tuple(sorted(path.stem for path in FOLDER.glob("*.avsc")))
MAX_VALUE_BYTES = 1 << 20
MARKER = b"\xc3\x01"
CONFLUENT = struct.Struct(">bI")

Headers = Sequence[tuple[str, bytes]]
"Names and values of a record's headers; the value is None where Kafka's is null."


class Framing(enum.Enum):
    """How a record's value is encoded."""

    SINGLE_OBJECT = "avro-single-object"
    CONFLUENT = "avro-confluent"
    JSON = "json"


class Registry(Protocol):
    """The interface of a schema registry to the codec. Only `ready` and `answered` wait for the registry."""

    def __hash__(self) -> int:
        """Identity: parsed schemas are cached per registry."""
        ...

    def id_of(self, name: str) -> int:
        """Return the id of the current version of schema `name`; raises NotReady while it is not known."""

    def schema_of(self, schema_id: int) -> str:
        """Return the text of a registered schema.

        Raises:
            KeyError: the registry has no schema with this id.
            NotReady: `registry_unavailable`, it is not known whether it has one.
        """

    def trouble(self) -> str:
        """Describe the registry's current problem for operators; empty without one."""

    async def ready(self, wanted: Collection[int | str], within_s: float = math.inf) -> None:
        """Wait until these schema ids and names are known, for a bounded time, at most `within_s`."""

    async def answered(self, wanted: int | str) -> None:
        """Wait without limit until an id or a name is known, or known not to exist."""


def schema_text(name: str) -> str:
    """Return the text of the current version of schema `name`."""
    return (FOLDER / f"{name}.avsc").read_text(encoding="utf-8")


@functools.cache
def load(name: str) -> Any:
    """Return the current version of schema `name`, parsed for fastavro."""
    return fastavro.parse_schema(json.loads(schema_text(name)))


def fingerprint(schema: Any) -> bytes:
    """Return the little-endian CRC-64-AVRO of a parsed schema's canonical form: 8 bytes."""
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    return bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))


@functools.cache
def header(name: str) -> bytes:
    """Return the prefix of values in single-object encoding of the current version of schema `name`: 10 bytes."""
    return MARKER + fingerprint(load(name))


@functools.cache
def _writers(name: str) -> dict[bytes, Any]:
    """Return every readable version of `name`, by fingerprint."""
    found = {fingerprint(load(name)): load(name)}
    for path in sorted((FOLDER / "previous" / name).glob("*.avsc")):
        schema = fastavro.parse_schema(json.loads(path.read_text(encoding="utf-8")))
        found.setdefault(fingerprint(schema), schema)
    return found


@functools.lru_cache(maxsize=1024)
def _registered(registry: Registry, schema_id: int) -> Any:
    return _parsed(registry.schema_of(schema_id))


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """Parse a registered schema. Returns a BadEvent if it is invalid, so that the failure is cached, too."""
    try:
        schema = fastavro.parse_schema(json.loads(text))
        _least_bytes(schema, {}, frozenset())
    except BadEvent as exc:
        return exc
    except Exception as exc:  # fastavro raises many exception types on invalid schemas
        return BadEvent("unknown_schema", f"the registered schema is not Avro: {type(exc).__name__}: {exc}"[:500])
    return schema


def _least_bytes(schema: Any, named: dict[str, int], around: frozenset[str]) -> int:
    """Return the minimum size of a datum in bytes, and check that a record's size bounds the depth and number of its data.

    Raises:
        BadEvent: `unknown_schema`. A recursive type may be nested deeper than the stack, and an array of zero-byte items may
            have any length. fastavro guards against neither, and would end the process.
    """
    if isinstance(schema, list):
        for branch in schema:
            _least_bytes(branch, named, around)
        return 1
    kind = schema["type"] if isinstance(schema, dict) else schema
    if isinstance(kind, dict | list):
        return _least_bytes(kind, named, around)
    if kind in around:
        raise BadEvent("unknown_schema", f"the registered schema is recursive: {kind}")
    if kind in named:
        return named[kind]
    if kind in {"record", "error"}:
        inside = around | {schema["name"]}
        least = sum(_least_bytes(field["type"], named, inside) for field in schema["fields"])
    elif kind == "array":
        if not _least_bytes(schema["items"], named, around):
            raise BadEvent("unknown_schema", "the registered schema has an array whose entries take no bytes")
        return 1
    elif kind == "map":
        _least_bytes(schema["values"], named, around)
        return 1
    elif kind == "fixed":
        least = schema["size"]
    else:
        least = int(kind != "null")
    if isinstance(schema, dict) and "name" in schema:
        named[schema["name"]] = least
    return least


def header_of(headers: Headers, name: str) -> bytes | None:
    """Return the value of the last header `name`, as Kafka's `lastHeader`; None if it is absent or null."""
    for key, content in reversed(headers):
        if key == name:
            return content
    return None


def is_json(headers: Headers) -> bool:
    """Return whether the content type is JSON. The last such header counts; parameters after a semicolon are ignored."""
    for key, content in reversed(headers):
        # header names and media types are case-insensitive (RFC 9110, 5.1 and 8.3.1)
        if key.lower() == "content-type":
            return (content or b"").split(b";")[0].strip().lower() == b"application/json"
    return False


def framing_of(value: bytes, headers: Headers = ()) -> Framing:
    """Determine how `value` is framed.

    Raises:
        BadEvent: `unknown_framing`.
    """
    if is_json(headers):
        return Framing.JSON
    if value[:2] == MARKER:
        return Framing.SINGLE_OBJECT
    if value[:1] == b"\x00":
        return Framing.CONFLUENT
    raise BadEvent("unknown_framing", "neither Avro (0xC3 0x01 or 0x00 first) nor JSON by content-type header")


def is_plain(value: bytes | None, headers: Headers = ()) -> bool:
    """Return whether a record is in single-object encoding: what it decodes to then depends on its value alone."""
    return value is not None and value[:2] == MARKER and not is_json(headers)


def schema_ids(values: Sequence[bytes | None], headers: Sequence[Headers]) -> set[int]:
    """Return the registry's ids of the writer schemas of records in Confluent framing."""
    if isinstance(values, Spans):
        rows = values.beginning_with(0).tolist()
    else:
        rows = [n for n, value in enumerate(values) if value is not None and value[:1] == b"\x00"]
    found = set()
    for n in rows:
        value = values[n] or b""
        if CONFLUENT.size <= len(value) <= MAX_VALUE_BYTES and framing_of(value, headers[n]) is Framing.CONFLUENT:
            found.add(CONFLUENT.unpack_from(value)[1])
    return found


async def look_up(registry: Registry | None, values: Sequence[bytes | None], headers: Sequence[Headers]) -> None:
    """Request the writer schemas of records in Confluent framing before decoding; waits a bounded time."""
    if registry is not None and (wanted := schema_ids(values, headers)):
        await registry.ready(wanted)


def encode(
    name: str, datum: Mapping[str, Any], framing: Framing = Framing.SINGLE_OBJECT, registry: Registry | None = None
) -> bytes:
    """Encode `datum` with the current version of schema `name`.

    Raises:
        BadEvent: `unencodable`, the datum does not match the schema; `no_registry`.
        NotReady: `registry_unavailable`.
    """
    if framing is Framing.JSON:
        try:
            return orjson.dumps(datum)
        except TypeError as exc:
            raise BadEvent("unencodable", f"{name} does not fit JSON: {exc}") from exc
    out = io.BytesIO(prefix(name, framing, registry))
    out.seek(0, io.SEEK_END)
    with encoding(name):
        fastavro.schemaless_writer(out, load(name), datum)
    return out.getvalue()


def prefix(name: str, framing: Framing, registry: Registry | None) -> bytes:
    """Return the bytes before an Avro body of the current version of schema `name`.

    Raises:
        BadEvent: `no_registry`.
        NotReady: `registry_unavailable`.
    """
    if framing is Framing.SINGLE_OBJECT:
        return header(name)
    if registry is None:
        raise BadEvent("no_registry", "Confluent framing needs a schema registry: set RIFFLE_REGISTRY_URL")
    return CONFLUENT.pack(0, registry.id_of(name))


@contextlib.contextmanager
def encoding(name: str) -> Iterator[None]:
    """Raise what a writer of Avro raises for a datum that does not match schema `name` as BadEvent `unencodable`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, struct.error) as exc:
        raise BadEvent("unencodable", f"does not fit schema {name}: {exc}") from exc


def decode(name: str, value: bytes, headers: Headers = (), registry: Registry | None = None) -> tuple[dict[str, Any], Framing]:
    """Decode a record's value to the current version of schema `name`; JSON is returned unvalidated.

    Raises:
        BadEvent: `too_large`, `unknown_framing`, `unknown_schema`, `no_registry`, `not_json`, `too_deep`,
            `truncated`, `trailing_bytes`.
        NotReady: `registry_unavailable`, the record may be valid.
    """
    if len(value) > MAX_VALUE_BYTES:
        raise BadEvent("too_large", f"{len(value)} bytes, at most {MAX_VALUE_BYTES} are read")
    framing = framing_of(value, headers)
    if framing is Framing.JSON:
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError as exc:
            code, what = json_fault(exc)
            raise BadEvent(code, what) from exc
        if not isinstance(parsed, dict):
            raise BadEvent("not_json", "the JSON value is not an object")
        return parsed, framing
    if framing is Framing.SINGLE_OBJECT:
        if value[:10] == header(name):
            return _read(value, 10, load(name), None), framing
        writer = _writers(name).get(value[2:10])
        if writer is None:
            raise BadEvent("unknown_schema", f"schema fingerprint {value[2:10].hex()} is not a version of {name}")
        return _read(value, 10, writer, load(name)), framing
    if registry is None:
        raise BadEvent("no_registry", "Confluent framing, but no schema registry is configured")
    if len(value) < CONFLUENT.size:
        raise BadEvent("truncated", "shorter than the Confluent header")
    try:
        writer = _registered(registry, CONFLUENT.unpack_from(value)[1])
    except KeyError as exc:
        raise BadEvent("unknown_schema", f"the registry has no schema {exc}") from exc
    if isinstance(writer, BadEvent):
        raise writer
    return _read(value, CONFLUENT.size, writer, load(name)), framing


def decode_newer(name: str, value: bytes) -> dict[str, Any]:
    """Decode a record in single-object encoding of a later version of schema `name`, as the current version.

    This requires that the later version only appends fields to the record: Avro writes fields in order, without names.

    Raises:
        BadEvent: `too_large`, `unknown_framing`, `truncated`.
    """
    if len(value) > MAX_VALUE_BYTES:
        raise BadEvent("too_large", f"{len(value)} bytes, at most {MAX_VALUE_BYTES} are read")
    if framing_of(value) is not Framing.SINGLE_OBJECT:
        raise BadEvent("unknown_framing", "not Avro in single-object encoding (0xC3 0x01 first)")
    return _read(value, 10, load(name), None, whole=False)


def _read(value: bytes, start: int, writer: Any, reader: Any, *, whole: bool = True) -> dict[str, Any]:
    stream = io.BytesIO(value)
    stream.seek(start)
    try:
        datum = fastavro.schemaless_reader(stream, writer, reader)
    except fastavro.read.SchemaResolutionError as exc:
        raise BadEvent("unknown_schema", f"its schema is not one of {reader['name']}: {exc}"[:500]) from exc
    except Exception as exc:  # fastavro raises many exception types on bytes that do not match
        raise BadEvent("truncated", f"not a datum of the schema: {type(exc).__name__}: {exc}") from exc
    if whole and stream.tell() != len(value):
        raise BadEvent("trailing_bytes", f"{len(value) - stream.tell()} bytes left after the datum")
    if not isinstance(datum, dict):
        raise BadEvent("unknown_schema", "the writer's schema is not a record")
    return datum
