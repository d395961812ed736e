"""Ends of TLS connections that are expected, and that uvloop reports as errors.

A TLS connection has two layers. When the other side resets it, or does not close it in time, uvloop closes the lower one at
once, and notifies the upper one later. What the upper one still has to write in between fails with a RuntimeError, which uvloop
reports with a stack trace; without TLS it would be an OSError, which it ignores. Whoever waits for the
connection gets its end as usual.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

__all__ = ["is_expected", "quiet_ends"]

log = logging.getLogger(__name__)

PROTOCOL = "SSLProtocol"
CLOSED = "the handler is closed"
"End of the message of the RuntimeError."


def is_expected(context: dict[str, Any]) -> bool:
    """Return whether a context of a loop's exception handler reports the end of a TLS connection."""
    error = context.get("exception")
    if type(context.get("protocol")).__name__ != PROTOCOL:
        return False
    return isinstance(error, OSError) or (isinstance(error, RuntimeError) and str(error).endswith(CLOSED))


def quiet_ends(loop: asyncio.AbstractEventLoop) -> None:
    """Log expected ends of connections at level DEBUG without a stack trace; all else is handled as before."""
    before = loop.get_exception_handler()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if is_expected(context):
            log.debug("a TLS connection ended: %s: %s", context.get("message"), context["exception"])
        elif before is not None:
            before(loop, context)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)
