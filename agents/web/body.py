"""Reading request bodies within bounds of size, depth and time."""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterable, AsyncIterator, Sequence

import orjson
from aiohttp import web

from schemas.errors import BadRequest
from schemas.parsing import json_fault, shown

__all__ = [
    "BODY_TIMEOUT_S",
    "ENCODINGS",
    "MAX_BODY_BYTES",
    "MAX_EVENTS",
    "MAX_JSON_DEPTH",
    "MAX_VALUES",
    "STEP_BYTES",
    "check_depth",
    "check_length",
    "encoding_of",
    "is_broken",
    "read_json",
    "unpacked",
]

MAX_BODY_BYTES = 1 << 20
"Maximum size of a body in bytes, both as it was sent and after decompression."
MAX_EVENTS = 1_000
"Maximum number of events in one body."
MAX_JSON_DEPTH = 16
"Maximum nesting of arrays and objects in a body."
MAX_VALUES = 50_000
"""Maximum number of values in a body, about three times that of the largest request. Parsing blocks all other requests, and a
body of empty lists takes a hundred times as long as one of events."""
BODY_TIMEOUT_S = 30.0
"Seconds within which a body must arrive."
STEP_BYTES = 1 << 16
"Number of bytes that are decompressed before other connections get their turn."
MAX_MEMBERS = 100
"Maximum number of consecutive gzip streams in a body."
ENCODINGS = frozenset({"identity", "gzip", "deflate"})
"Supported content encodings."
STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"A JSON string, or the rest of the text after an unclosed quote, so that it is scanned only once."
CHARSET = re.compile(r';\s*charset\s*=\s*"?([^";\s]*)', re.IGNORECASE)
UTF_8 = frozenset({"utf-8", "utf8", "us-ascii", ""})
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


async def read_json(request: web.Request) -> object:
    """Parse a body of at most `MAX_BODY_BYTES` as JSON, regardless of content type. Of a repeated key the last value counts.

    Raises:
        BadRequest: code `too_large`, `unsupported_encoding`, `unreadable_body`, `body_timeout`, `empty_body`, `not_json` or
            `too_deep`.
    """
    for charset in CHARSET.findall(request.headers.get("Content-Type", "")):
        if charset.lower() not in UTF_8:
            raise BadRequest("unsupported_encoding", f"the body must be UTF-8, not {shown(charset)}", "Content-Type")
    if request.headers.get("Transfer-Encoding", "chunked").strip().lower() != "chunked":
        raise BadRequest("unsupported_encoding", "Transfer-Encoding must be chunked, or absent", "Transfer-Encoding")
    encoding = encoding_of(request.headers.getall("Content-Encoding", ()))
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in unpacked(request.content.iter_chunked(STEP_BYTES), encoding):
                body += part
    except TimeoutError as exc:
        raise BadRequest("body_timeout", f"the body did not arrive within {BODY_TIMEOUT_S:g} s") from exc
    if is_broken(request):
        raise BadRequest("unreadable_body", "the body is not sent in chunks as its headers say")
    if body.startswith(BYTE_ORDER_MARK):
        del body[: len(BYTE_ORDER_MARK)]
    if not body.strip():
        raise BadRequest("empty_body", "the body must be JSON, but it is empty")
    _check_values(body)
    try:
        value: object = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        code, what = json_fault(exc)
        if code == "too_deep":
            raise _too_deep() from exc
        raise BadRequest(code, f"the body is {what}") from exc
    check_depth(value)
    return value


def encoding_of(headers: Sequence[str]) -> str:
    """Return the encoding, one of `ENCODINGS`, that the values of `Content-Encoding` name.

    Raises:
        BadRequest: code `unsupported_encoding`, also for several encodings in sequence.
    """
    named = ", ".join(headers).strip().lower() or "identity"
    if named not in ENCODINGS:
        raise BadRequest(
            "unsupported_encoding", f"Content-Encoding must be gzip, deflate or identity, is {shown(named)}", "Content-Encoding"
        )
    return named


async def unpacked(parts: AsyncIterable[bytes], encoding: str) -> AsyncIterator[bytes]:
    """Decompress a body to parts of at most `STEP_BYTES`; other tasks get their turn after each.

    The work is bounded for every input: neither the bytes read nor the decompressed ones exceed `MAX_BODY_BYTES` by more than a
    step, so that no limit of the compression ratio is needed. Several gzip streams may follow each other (RFC 1952).

    Raises:
        BadRequest: code `too_large`; `unreadable_body` if the body is truncated or not in this encoding.
    """
    came = gave = members = 0
    inflate: zlib._Decompress | None = None
    async for part in parts:
        came += len(part)
        if came > MAX_BODY_BYTES:
            raise _too_large()
        if encoding == "identity":
            yield part
            continue
        rest, full = part, False
        while rest or full:
            if inflate is None or (inflate.eof and encoding == "gzip"):
                members += 1
                inflate = zlib.decompressobj(_window(encoding, rest))
            if inflate.eof or members > MAX_MEMBERS:
                raise _unreadable(encoding)
            try:
                made = inflate.decompress(rest, STEP_BYTES)
            except zlib.error as exc:
                raise _unreadable(encoding) from exc
            rest = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            full = len(made) == STEP_BYTES and not inflate.eof  # zlib may hold more output of bytes it has already read
            gave += len(made)
            if gave > MAX_BODY_BYTES:
                raise _too_large()
            yield made
            await asyncio.sleep(0)
    if inflate is not None and not inflate.eof:
        raise _unreadable(encoding)


def check_length(request: web.Request) -> None:
    """Refuse a body whose announced length is too large, even if no view reads it.

    Raises:
        BadRequest: code `too_large`.
    """
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()


def is_broken(request: web.BaseRequest) -> bool:
    """Return whether the connection failed to parse a request's body, which then ends at that point."""
    return getattr(request.protocol, "broken_body", None) is request.content


def check_depth(value: object) -> None:
    """Refuse values nested more than `MAX_JSON_DEPTH` levels.

    Raises:
        BadRequest: code `too_deep`.
    """
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = [
            child
            for parent in level
            if isinstance(parent, list | dict)
            for child in (parent if isinstance(parent, list) else parent.values())
        ]
        if not level:
            return
    raise _too_deep()


def _check_values(body: bytearray) -> None:
    if body.count(b",") >= MAX_VALUES and STRING.sub(b"", body).count(b",") >= MAX_VALUES:
        raise BadRequest("too_large", f"the body holds more than {MAX_VALUES} values")


def _too_deep() -> BadRequest:
    return BadRequest("too_deep", f"the body is nested more than {MAX_JSON_DEPTH} levels deep")


def _too_large() -> BadRequest:
    return BadRequest("too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")


def _window(encoding: str, start: bytes) -> int:
    """Return zlib's `wbits`. Many clients send `deflate` without the zlib header that it should have."""
    if encoding == "gzip":
        return 16 + zlib.MAX_WBITS
    return zlib.MAX_WBITS if start[0] & 0xF == 8 else -zlib.MAX_WBITS


def _unreadable(encoding: str) -> BadRequest:
    return BadRequest("unreadable_body", f"the body is incomplete or not in {encoding}, as Content-Encoding says")
