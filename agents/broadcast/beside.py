"""Releases that do not serve, loaded beside the serving one so that a person can compare their slates."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from agents.broadcast.releases import follow_catalogue
from models.items.store import ItemStore
from models.pipeline.batch import Model
from models.pipeline.slot import ModelSlot
from models.release.release import NAME
from models.release.serving import ServingModel, prepare
from schemas.errors import BadRequest, NotReady, ReleaseRejected, RiffleError
from schemas.parsing import shown

__all__ = ["KEPT_S", "PATIENCE_S", "Beside"]

log = logging.getLogger(__name__)

KEPT_S = 600.0
"Seconds for which a release that is not asked for any more stays loaded."
PATIENCE_S = 5.0
"Seconds that a request waits for a release that is being loaded: less than another worker waits for the whole answer."


class Beside:
    """Holds at most one release beside the serving one, because a release may take much memory.

    Loading goes on when the request that began it ends. It belongs to the item store's thread.
    """

    def __init__(
        self,
        folder: Path,
        items: ItemStore,
        serving: ModelSlot,
        prepared: Callable[[Path], ServingModel] = prepare,
        kept_s: float = KEPT_S,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`folder`: the one of the releases; `prepared`: loads and tries one."""
        self._folder = folder
        self._items = items
        self._serving = serving
        self._prepared = prepared
        self._kept_s = kept_s
        self._held = ModelSlot()
        self._patience_s = patience_s
        self._one = asyncio.Lock()
        "Held while a release is loaded, so that two are never loaded at once."
        self._task: asyncio.Task[Model] | None = None
        "The load under way, or a failed one that no request has received yet."
        self._loads = ""
        self._leaving: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """Name of the release that is held, `none` without one."""
        return self._held.name

    async def slot(self, name: str) -> ModelSlot:
        """Return a slot with a release of the folder; an empty one for `none`.

        Raises:
            BadRequest: `not_found`, the folder has no such release; `release_refused`, it cannot be used.
            NotReady: `busy`, this release or another one is being loaded.
        """
        found = ModelSlot()
        if name != "none":
            found.swap(self._serving.current if name == self._serving.name else await self._loaded(name))
        return found

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Load another release in this context: a load that is under way ends first, and the held release is dropped."""
        async with self._one:
            self._leave()
            yield

    async def _loaded(self, name: str) -> Model:
        if self._held.current is not None and self._held.name == name:
            self._stay()
            return self._held.current
        task = self._task
        if task is not None and task.done() and self._loads != name:
            task = None  # a failure that nobody has asked about again
        if task is None:
            task = self._begin(name)
        elif self._loads != name:
            raise NotReady("busy", "another release is being loaded here: try again")
        await asyncio.wait({task}, timeout=self._patience_s)  # which cancels nothing
        if not task.done():
            raise NotReady("busy", f"release {name} is being loaded: try again")
        if self._task is task:
            self._task = None
        return task.result()

    def _begin(self, name: str) -> asyncio.Task[Model]:
        folder = self._folder / name
        if not NAME.fullmatch(name) or not folder.is_dir():
            message = f"this worker's folder has no release {shown(name)}: GET /v1/releases lists them"
            raise BadRequest("not_found", message, "release")
        if self._one.locked():
            raise NotReady("busy", "another release is being loaded here: try again")
        self._task, self._loads = asyncio.create_task(self._load(folder)), name
        self._task.add_done_callback(self._ended)
        return self._task

    def _ended(self, task: asyncio.Task[Model]) -> None:
        """Keep a failure for the next request, which may come after it."""
        if task.cancelled() or (failure := task.exception()) is None:
            self._task = None
        elif not isinstance(failure, RiffleError):
            log.error("release %s could not be loaded to be compared", self._loads, exc_info=failure)

    async def _load(self, folder: Path) -> Model:
        async with self._one:
            self._held.swap(None)  # before the next one is loaded, so that there are never two
            model = await self._prepare(folder)
            self._held.swap(model)
            self._stay()
            return model

    async def _prepare(self, folder: Path) -> ServingModel:
        try:
            model = await asyncio.to_thread(self._prepared, folder)
        except ReleaseRejected as exc:
            raise BadRequest("release_refused", f"release {folder.name} cannot be used: {exc.message}", "release") from exc
        await follow_catalogue(model, self._items)
        return model

    def _stay(self) -> None:
        """Let the release go once nobody has asked for it for a while."""
        if self._leaving is not None:
            self._leaving.cancel()
        self._leaving = asyncio.get_running_loop().call_later(self._kept_s, self._leave)

    def _leave(self) -> None:
        self._held.swap(None)
