"""A check of the watch: whether ranking processes answer."""

from __future__ import annotations

from agents.findings import Health
from agents.requests.remote import Remote

__all__ = ["RankingAway"]


class RankingAway:
    """Checks whether ranking processes answer. Requests are ranked here otherwise."""

    def __init__(self, remote: Remote, health: Health) -> None:
        self._remote = remote
        self._health = health

    async def look(self) -> None:
        """Report the number of partitions on which none answers."""
        away = self._remote.away
        does = f"refuse tasks ({self._remote.refused})" if self._remote.refused else "do not answer"
        here = "their requests are ranked in the worker, which asks again with its next requests"
        self._health.set("ranking", f"ranking processes {does} on {away} partitions: {here}" if away else "")
