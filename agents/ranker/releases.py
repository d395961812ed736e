"""Rankers of announced releases."""

from __future__ import annotations

import asyncio

from agents.broadcast.releases import Announced
from agents.metrics import Metrics
from models.release.graphs import Provider
from models.release.ranker import Ranker
from models.release.release import Release
from schemas.settings import Settings
from streams.kafka.announce import Announcement

__all__ = ["RankerSlot", "Rankers"]

KEPT = 2
"Number of rankers that are kept: the announced one, and the one before for workers that still serve it."


class RankerSlot:
    """The rankers that may rank, by the name of their release."""

    def __init__(self) -> None:
        self.refused: dict[str, str] = {}
        "Reason of refusal by release name."
        self._rankers: dict[str, Ranker] = {}
        self.name = "none"
        "Name of the announced release, `none` without one."

    def swap(self, model: Ranker | None) -> None:
        """Rank by a release, too, and forget the oldest one; None changes nothing but the name."""
        self.name = "none" if model is None else model.name
        if model is not None:
            self._rankers.pop(model.name, None)
            self._rankers[model.name] = model
            while len(self._rankers) > KEPT:
                self._rankers.pop(next(iter(self._rankers)))

    def of(self, release: str) -> Ranker | None:
        """Return the ranker of a release, if it is loaded."""
        return self._rankers.get(release)

    @property
    def provider(self) -> str | None:
        """Execution provider of the newest ranker; None without one."""
        return next((ranker.provider for ranker in reversed(self._rankers.values())), None)


class Rankers(Announced[Ranker]):
    """Keeps the slot at the announced champion."""

    def __init__(self, settings: Settings, slot: RankerSlot, metrics: Metrics) -> None:
        super().__init__(settings, slot, metrics)

    async def _load(self, wanted: Announcement) -> Ranker:
        ranker = await asyncio.to_thread(self._opened, wanted)
        self._metrics.rank_provider.set(1, provider=ranker.provider)
        return ranker

    def _opened(self, wanted: Announcement) -> Ranker:
        release = Release.open(self._fetch(wanted), wanted.manifest_sha256)
        return Ranker(release, Provider(self._settings.rank_provider), cache=self._settings.cache)
