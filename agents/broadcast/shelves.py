"""The shelf of a large catalogue, and what a release knows of its rows: found at start, written by one worker of a machine."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from agents.metrics import Metrics
from models.items.mapped import MANIFEST, remove_parts
from models.items.shelf import Shelving, newest, open_shelf, place, written_ns
from models.items.store import ItemStore
from models.pipeline.slot import ModelSlot
from models.release.bound import find_bound, open_bound, write_bound
from models.release.rows import content_width
from models.release.serving import ServingModel
from models.state.rows import hash64
from schemas.errors import StoreCorrupt
from schemas.settings import Settings

__all__ = ["Shelves", "shelves_dir"]

log = logging.getLogger(__name__)

NEWER = 20
"A shelf is written anew when this fraction, as its inverse, of the items is not on it."
MODELS = 3
"Number of releases of which it is kept what they know of a shelf: workers may serve different ones for a while."
CHECK_S = 60.0
"Seconds between two looks at what is to be written."
FAILED_S = 3_600.0
"Seconds before writing is tried again after the disk refused it."


def shelves_dir(settings: Settings) -> Path:
    """Return the folder of the shelves of this catalogue, which all workers of the machine share."""
    return settings.cache / "catalogue" / f"{hash64(f'{settings.bootstrap_servers} {settings.topic_prefix}'):016x}"


class Shelves:
    """Finds and writes shelves. Without one, a worker decodes the catalogue itself, and memory is its own."""

    def __init__(self, root: Path, items: ItemStore, slot: ModelSlot, metrics: Metrics, least: int) -> None:
        """`root`: as `shelves_dir` returns it; `least`: number of items from which a catalogue is put on a shelf."""
        self._root, self._items, self._slot, self._metrics, self._least = root, items, slot, metrics, least
        self._stopped = threading.Event()
        self._old = set[Path]()
        "The shelves that were there at the start."
        self._refused = set[Path]()
        "Folders that cannot be used, and could not be removed."

    def find(self) -> None:
        """Put the empty store on the newest shelf that can be used. Others are removed."""
        try:
            self._old.update(self._folders("items"))
            while (folder := newest(self._root, self._refused)) is not None:
                try:
                    place(folder, self._items)
                except StoreCorrupt as exc:
                    self._refuse(exc, "items", folder)
                else:
                    self._metrics.shelves.add(kind="items", outcome="mapped")
                    log.info("the catalogue is mapped from %s: %d items", folder, len(self._items))
                    return
        except OSError as exc:
            self._failed(exc)

    def held(self, release: str) -> tuple[Path, int] | None:
        """Return what `models.release.serving.prepare` needs to map what a release knows of the shelf's rows."""
        folder = find_bound(self._root, release, self._items.shelf, self._refused) if self._items.shelf else None
        return None if folder is None else (folder, self._items.held_changes)

    def refuse(self, exc: StoreCorrupt, folder: Path) -> None:
        """Remove what a release knew of the shelf's rows, because it cannot be used."""
        self._refuse(exc, "model", folder)

    def _refuse(self, exc: StoreCorrupt, kind: str, folder: Path) -> None:
        self._metrics.shelves.add(kind=kind, outcome="refused")
        log.error("%s; it is removed, and written again later", exc.message)
        shutil.rmtree(folder, ignore_errors=True)  # another worker may remove it, too
        if folder.exists():  # the files may be another user's, or the disk read-only
            self._refused.add(folder)

    def _failed(self, exc: Exception) -> None:
        self._metrics.shelves.add(kind="", outcome="failed")
        log.warning("the shelves in %s cannot be used, the catalogue is this worker's own: %s", self._root, exc)

    async def run(self) -> None:
        """Write what is missing, until cancelled."""
        try:
            while True:
                try:
                    await self.renew()
                except (OSError, StoreCorrupt) as exc:
                    self._failed(exc)
                    await asyncio.sleep(FAILED_S)
                await asyncio.sleep(CHECK_S)
        finally:
            self._stopped.set()  # for the thread that may be writing, because the end of the process waits for it

    async def renew(self) -> None:
        """Write the shelf if it is missing or old, then what the serving release knows of it, and use both.

        Raises:
            OSError: the disk refuses it.
            StoreCorrupt: what was written cannot be read.
        """
        items = self._items
        if len(items) < self._least:
            return
        with _locked(self._root) as mine:
            if not mine:
                return
            await asyncio.to_thread(remove_parts, self._root)
            if self._wanted():
                await self._write_shelf()
            model = self._slot.current
            there = items.shelf and (self._root / items.shelf).exists()
            if there and isinstance(model, ServingModel):
                await self._write_bound(model)

    def _wanted(self) -> bool:
        """Return whether this worker has to write a shelf."""
        items, size = self._items, len(self._items)
        latest = newest(self._root, self._refused)
        if latest is not None and latest.name != items.shelf and latest not in self._old:
            return False  # another worker wrote it since this one started; it is mapped at the next start
        listed, kept = items.listed[:size], items.records[:size] != 0
        if 2 * int((listed & kept).sum()) < int(listed.sum()):
            return False  # entries that are not in single-object encoding are decoded at each start, with a shelf and without
        if not items.shelf or not (self._root / items.shelf).exists():
            return True
        newer = size - items.held + int((kept[: items.held] & (items.changed[: items.held] > items.held_changes)).sum())
        return newer * NEWER > size

    async def _write_shelf(self) -> None:
        shelving = Shelving.begin(self._items)
        folder = await asyncio.to_thread(shelving.write, self._root, self._stopped.is_set)
        try:
            shelf = await asyncio.to_thread(open_shelf, folder)
        except StoreCorrupt as exc:
            self._refuse(exc, "items", folder)
            raise
        shelving.finish(shelf)
        self._metrics.shelves.add(kind="items", outcome="written")
        await asyncio.to_thread(self._prune, folder.name)

    async def _write_bound(self, model: ServingModel) -> None:
        if find_bound(self._root, model.name, self._items.shelf, self._refused) is not None:
            return
        found = model.rows.begin_bound(self._items)
        if found is None:
            return
        room = len(self._items.available) - found.size
        folder = await asyncio.to_thread(
            write_bound, self._root, model.name, self._items.shelf, room, found, self._stopped.is_set
        )
        written = await asyncio.to_thread(open_bound, folder, model.release, content_width(model.release))
        model.rows.share(written)
        self._metrics.shelves.add(kind="model", outcome="written")
        await asyncio.to_thread(self._prune, self._items.shelf)

    def _folders(self, kind: str) -> list[Path]:
        return sorted(self._root.glob(f"{kind}-*")) if self._root.is_dir() else []

    def _prune(self, shelf: str) -> None:
        """Remove older shelves, and what was written for shelves that are gone, or MODELS releases ago.

        Who has mapped them keeps them.
        """
        own = written_ns(self._root / shelf)
        for folder in self._folders("items"):
            if folder.name != shelf and written_ns(folder) < own:
                shutil.rmtree(folder, ignore_errors=True)
        models: dict[str, list[Path]] = defaultdict(list)
        for folder in sorted(self._folders("model"), key=written_ns, reverse=True):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                models[str(json.loads((folder / MANIFEST).read_bytes())["facts"]["shelf"])].append(folder)
        for name, folders in models.items():
            for folder in folders[MODELS:] if (self._root / name).exists() else folders:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[bool]:
    """Hold the machine's lock for writing below `root`; yields whether it was free."""
    root.mkdir(parents=True, exist_ok=True)
    with (root / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
