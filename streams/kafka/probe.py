"""Check whether a Kafka broker answers: one ApiVersions request, which needs no login (Kafka protocol guide)."""

from __future__ import annotations

import asyncio
import ssl

__all__ = ["ANSWER_BYTES", "API_VERSIONS", "answers", "is_answer"]

API_VERSIONS = b"\x00\x00\x00\x0a\x00\x12\x00\x00\x00\x00\x00\x07\xff\xff"
"A request: size, API key 18, version 0, correlation id 7, null client id."
ANSWER_BYTES = 10
"Bytes of the answer that are checked: size, correlation id, error code."


def is_answer(found: bytes) -> bool:
    """Whether the first `ANSWER_BYTES` of an answer come from a broker."""
    return found[4:ANSWER_BYTES] == b"\x00\x00\x00\x07\x00\x00"


async def answers(host: str, port: int, timeout_s: float, context: ssl.SSLContext | None = None) -> bool:
    """Whether a broker there answers a request. A hung broker still accepts connections, so connecting is not enough.

    `context`: for a listener with TLS, whose certificate is verified.
    """
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            try:
                writer.write(API_VERSIONS)
                answer = await reader.readexactly(ANSWER_BYTES)
            finally:
                writer.close()
    except (OSError, EOFError):
        return False
    return is_answer(answer)
