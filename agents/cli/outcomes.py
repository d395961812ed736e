"""Outcomes of the events that a command produced, from the counters of the worker at the configured address."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Callable

import aiohttp

from agents.web.caller import ANYONE, Caller

__all__ = ["outcomes", "since"]

EVENTS = re.compile(r'^riffle_events_total\{(?:.*,)?outcome="(\w+)"(?:,.*)?\} (\S+)$', re.MULTILINE)
KNOWN = ("applied", "duplicate", "shown", "dead_letter")
"Final outcomes of an event. `replayed` events had one of these before."
TIMEOUT = aiohttp.ClientTimeout(total=5)
POLL_S = 0.1
STILL_S = 5.0
"Seconds without a further event after which this worker is not expected to apply the rest."


async def outcomes(web: str, caller: Caller = ANYONE) -> Counter[str] | None:
    """Return the number of events since the worker at this address started, by outcome; None if none answers."""
    try:
        url = f"{web}/metrics"
        async with (
            aiohttp.ClientSession(timeout=TIMEOUT) as session,
            session.get(url, **caller.arguments(url)) as response,
        ):
            text = await response.text()
            if response.status != 200:
                return None
    except (aiohttp.ClientError, TimeoutError, UnicodeDecodeError):
        return None
    found = Counter[str](dict.fromkeys(KNOWN, 0))
    for outcome, n in EVENTS.findall(text):
        found[outcome] += round(float(n))
    return found


async def since(
    web: str,
    before: Counter[str],
    sent: int,
    clock: Callable[[], float] = time.monotonic,
    still_s: float = STILL_S,
    caller: Caller = ANYONE,
) -> Counter[str] | None:
    """Wait until the outcomes since `before` cover at least `sent` events, and return them.

    They include events of other producers. Returns None if the worker does not reach that number, because it has ended, was
    restarted, or does not own all partitions.
    """
    at, most = clock(), -1
    while True:
        now = await outcomes(web, caller)
        if now is None or any(now[name] < before[name] for name in KNOWN):
            return None
        found = Counter({name: now[name] - before[name] for name in KNOWN})
        if found.total() >= sent:
            return found
        if found.total() > most:
            at, most = clock(), found.total()
        elif clock() - at > still_s:
            return None
        await asyncio.sleep(POLL_S)
