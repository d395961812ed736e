"""Users' records from the mirror, for a partition whose rows nobody holds."""

from __future__ import annotations

import asyncio
import logging

from agents.partitions.copies import MIRROR, Found
from agents.summaries import record_of
from streams.mirror.contract import Mirror

__all__ = ["Mirrored"]

log = logging.getLogger(__name__)


class Mirrored:
    """Reads mirrored summaries. They hold a user's newest events only, so older items may be shown again."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    async def find(self, user_id: str, within_s: float) -> Found | None:
        """Return a user's record; None if there is none, or the mirror does not answer within `within_s` seconds."""
        try:
            async with asyncio.timeout(within_s):
                summary = await self._mirror.get(user_id)
        except TimeoutError:
            return None
        if summary is None:
            return None
        try:
            return Found(record_of(summary), None, MIRROR)
        except (KeyError, TypeError, ValueError):
            log.warning("the mirrored summary of a user is of another version")
            return None
