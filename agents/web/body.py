"""Reading request bodies within bounds."""

from __future__ import annotations

import orjson
from aiohttp import web

from schemas.errors import BadRequest

__all__ = ["MAX_BODY_BYTES", "MAX_JSON_DEPTH", "check_depth", "read_json"]

MAX_BODY_BYTES = 1 << 20
"Bytes of a body, after decompression, that are read."
MAX_JSON_DEPTH = 16
"Levels of arrays and objects in a body."


async def read_json(request: web.Request) -> object:
    """The JSON value of a body, read at most up to `MAX_BODY_BYTES`.

    Raises:
        BadRequest: code `too_large`, `empty_body`, `not_json` or `too_deep`.
    """
    body = bytearray()
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        async for part in request.content.iter_chunked(1 << 16):
            body += part
            if len(body) > MAX_BODY_BYTES:
                raise _too_large()
    except web.RequestPayloadError as exc:
        raise BadRequest("unreadable_body", "the body breaks off or is not encoded as its headers say") from exc
    if not body.strip():
        raise BadRequest("empty_body", "the body must be JSON, but it is empty")
    try:
        value: object = orjson.loads(bytes(body))
    except orjson.JSONDecodeError as exc:
        raise BadRequest("not_json", f"the body is not JSON: {exc.msg} (line {exc.lineno}, column {exc.colno})") from exc
    check_depth(value)
    return value


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
    raise BadRequest("too_deep", f"the body is nested more than {MAX_JSON_DEPTH} levels deep")


def _too_large() -> BadRequest:
    return BadRequest("too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")
