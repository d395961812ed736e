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
        text = f"on {away} partitions no ranking process answers: their requests are ranked in the worker" if away else ""
        self._health.set("ranking", text)
