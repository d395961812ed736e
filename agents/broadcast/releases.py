"""Releases in a worker: follows announcements, verifies and tries a release in a thread, and swaps it between two batches."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from agents.broadcast.shelves import Shelves
from agents.metrics import Metrics
from models.items.store import ItemStore
from models.pipeline.slot import ModelSlot
from models.release.release import NAME
from models.release.serving import ServingModel, prepare
from schemas.errors import BadEvent, ReleaseRejected, StoreCorrupt
from schemas.settings import Settings
from streams.kafka.announce import CHAMPION, Announcement, decode_announcement
from streams.kafka.chunks import Chunk
from streams.release_store import fetch_release

__all__ = ["Releases"]

log = logging.getLogger(__name__)

RETRY_S = 30.0


class Releases:
    """Keeps the slot at the announced champion. If a release is refused, the old one keeps serving."""

    def __init__(
        self, settings: Settings, slot: ModelSlot, items: ItemStore, metrics: Metrics, shelves: Shelves | None = None
    ) -> None:
        self._settings = settings
        self._slot = slot
        self._items = items
        self._metrics = metrics
        self._shelves = shelves
        self._wanted: Announcement | None = None
        self._changed = asyncio.Event()

    def on_models(self, chunk: Chunk) -> None:
        """Record the newest announcement of the champion, which `follow` then handles."""
        for key, value in zip(chunk.keys, chunk.values, strict=True):
            if key != CHAMPION.encode():
                continue
            try:
                self._wanted = decode_announcement(value)
            except BadEvent as exc:
                log.warning("unreadable announcement: %s", exc)
                self._metrics.releases.add(outcome="unreadable")
            else:
                self._changed.set()

    async def follow(self) -> None:
        """Apply announcements until cancelled."""
        while True:
            await self._changed.wait()
            await self.take_up()

    async def take_up(self) -> None:
        """Load the newest announced release into the slot, unless it is there."""
        self._changed.clear()
        wanted = self._wanted
        if (wanted.release if wanted else "none") == self._slot.name:
            return
        if wanted is None:
            self._slot.swap(None)
            self._note("withdrawn", "none")
            return
        self._slot.refused.pop(wanted.release, None)
        try:
            model = await self._prepared(wanted)
            while not model.synced(self._items):
                model.sync(self._items)
                await asyncio.sleep(0)
            if not model.rows.indexed:
                (await asyncio.to_thread(model.rows.index_content, self._items.held or None))()
        except ReleaseRejected as exc:
            self._slot.refused[wanted.release] = exc.message
            self._metrics.releases.add(outcome="refused", code=exc.code)
            log.error("release %s is refused, %s keeps serving: %s", wanted.release[:80], self._slot.name, exc.message)
            return
        except Exception as exc:
            self._slot.refused[wanted.release] = f"{type(exc).__name__}: {exc}"
            self._metrics.releases.add(outcome="refused", code="not_fetched")
            log.exception("release %s could not be loaded, %s keeps serving", wanted.release[:80], self._slot.name)
            # possibly a fault of the network or the disk, so retry; an invalid release is refused above, and not retried
            asyncio.get_running_loop().call_later(RETRY_S, self._changed.set)
            return
        self._slot.swap(model)
        self._note("served", model.name)

    async def _prepared(self, wanted: Announcement) -> ServingModel:
        """Prepare a release in a thread, with what it knows of the store's shelf if that was written and can be used."""
        held = self._shelves.held(wanted.release) if self._shelves is not None else None
        if held is not None and self._shelves is not None:
            try:
                return await asyncio.to_thread(self._prepare, wanted, held)
            except StoreCorrupt as exc:
                self._shelves.refuse(exc, held[0])
        return await asyncio.to_thread(self._prepare, wanted)

    def _prepare(self, wanted: Announcement, held: tuple[Path, int] | None = None) -> ServingModel:
        if not NAME.fullmatch(wanted.release):
            raise ReleaseRejected("bad_name", f"{wanted.release[:80]!r} is not a release name")
        folder = fetch_release(self._settings.releases_dir, wanted)
        return prepare(folder, wanted.manifest_sha256) if held is None else prepare(folder, wanted.manifest_sha256, held)

    def _note(self, outcome: str, name: str) -> None:
        self._slot.refused.pop(name, None)
        self._metrics.releases.add(outcome=outcome)
        log.info("release %s serves", name)
