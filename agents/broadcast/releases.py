"""Releases in a process: follows announcements, verifies and tries a release in a thread, and swaps it between two batches."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from agents.broadcast.shelves import Shelves
from agents.metrics import Metrics
from models.items.store import ItemStore
from models.pipeline.batch import Model
from models.pipeline.slot import ModelSlot
from models.release.release import NAME
from models.release.serving import ServingModel, prepare
from schemas.errors import BadEvent, ReleaseRejected, StoreCorrupt
from schemas.settings import Settings
from streams.kafka.announce import CHAMPION, Announcement, decode_announcement
from streams.kafka.chunks import Chunk
from streams.release_store import fetch_release

__all__ = ["Announced", "Releases", "follow_catalogue"]

log = logging.getLogger(__name__)

RETRY_S = 30.0


class Loaded(Protocol):
    """A release that may serve."""

    @property
    def name(self) -> str:
        """Name of the release."""


T = TypeVar("T", bound=Loaded)
T_contra = TypeVar("T_contra", contravariant=True)


class Slot(Protocol[T_contra]):
    """The place of the serving release, as `models.pipeline.slot.ModelSlot`."""

    refused: dict[str, str]

    @property
    def name(self) -> str:
        """Name of the serving release, `none` without one."""

    def swap(self, model: T_contra | None) -> None:
        """Serve a release from now on; None: no release."""


class Announced(ABC, Generic[T]):
    """Keeps a slot at the announced champion. If a release is refused, the old one keeps serving."""

    def __init__(self, settings: Settings, slot: Slot[T], metrics: Metrics) -> None:
        self._settings = settings
        self._slot = slot
        self._metrics = metrics
        self._wanted: Announcement | None = None
        self._changed = asyncio.Event()

    @property
    def champion(self) -> str:
        """Name of the newest announced champion that was read, `none` without one. It serves once it is verified."""
        return self._wanted.release if self._wanted is not None else "none"

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
            model = await self._load(wanted)
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

    @abstractmethod
    async def _load(self, wanted: Announcement) -> T:
        """Fetch, verify and try a release, and make it ready to serve; raises ReleaseRejected if it must not serve."""

    def _fetch(self, wanted: Announcement) -> Path:
        """Return the folder of a release, which is fetched if it is not there."""
        if not NAME.fullmatch(wanted.release):
            raise ReleaseRejected("bad_name", f"{wanted.release[:80]!r} is not a release name")
        return fetch_release(self._settings.releases_dir, wanted)

    def _note(self, outcome: str, name: str) -> None:
        self._slot.refused.pop(name, None)
        self._metrics.releases.add(outcome=outcome)
        log.info("release %s serves", name)


async def follow_catalogue(model: ServingModel, items: ItemStore) -> None:
    """Give a prepared release the vectors of all items of the catalogue, in steps between which the event loop goes on."""
    while not model.synced(items):
        model.sync(items)
        await asyncio.sleep(0)
    if not model.rows.indexed:
        (await asyncio.to_thread(model.rows.index_content, items.held or None))()


class Releases(Announced[Model]):
    """The releases of a worker, whose vectors follow its catalogue."""

    def __init__(
        self,
        settings: Settings,
        slot: ModelSlot,
        items: ItemStore,
        metrics: Metrics,
        shelves: Shelves | None = None,
        alone: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    ) -> None:
        """`alone`: entered while a release is loaded; no other release is loaded then, nor held only to be compared."""
        super().__init__(settings, slot, metrics)
        self._items = items
        self._shelves = shelves
        self._alone = alone

    async def _load(self, wanted: Announcement) -> Model:
        async with self._alone():
            model = await self._prepared(wanted)
            await follow_catalogue(model, self._items)
            return model

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
        folder = self._fetch(wanted)
        return prepare(folder, wanted.manifest_sha256) if held is None else prepare(folder, wanted.manifest_sha256, held)
