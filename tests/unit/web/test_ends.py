"""An expected end of a TLS connection is no stack trace in the log, and every other error still is."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
import uvloop

from agents.web.ends import is_expected, quiet_ends

GONE = RuntimeError("unable to perform operation on <TCPTransport closed=True reading=False 0x55>; the handler is closed")


class SSLProtocol:
    """As uvloop's class is called."""


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        ({"exception": GONE, "protocol": SSLProtocol()}, True),
        ({"exception": ConnectionResetError(104, "reset"), "protocol": SSLProtocol()}, True),
        ({"exception": GONE, "protocol": object()}, False),
        ({"exception": GONE}, False),
        ({"exception": RuntimeError("a bug"), "protocol": SSLProtocol()}, False),
        ({"exception": ValueError("a bug"), "protocol": SSLProtocol()}, False),
        ({"message": "a task was destroyed"}, False),
    ],
)
@pytest.mark.parametrize("kept", [True, False])
def test_only_the_end_of_a_connection_is_quiet(
    context: dict[str, Any], expected: bool, kept: bool, caplog: pytest.LogCaptureFixture
) -> None:
    before: list[dict[str, Any]] = []

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        if kept:
            loop.set_exception_handler(lambda _, found: before.append(found))
        quiet_ends(loop)
        loop.call_exception_handler({"message": "Fatal error on SSL protocol", "transport": None, **context})

    with caplog.at_level(logging.DEBUG):
        uvloop.run(scene())
    written = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert is_expected(context) == expected
    assert len(written) + len(before) == (not expected)
    assert bool(before) == (kept and not expected)
    assert any("a TLS connection ended" in record.message for record in caplog.records) == expected
