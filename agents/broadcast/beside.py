"""Releases that do not serve, loaded beside the serving one so that a person can compare their slates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from agents.broadcast.releases import follow_catalogue
from models.items.store import ItemStore
from models.pipeline.batch import Model
from models.pipeline.slot import ModelSlot
from models.release.release import NAME
from models.release.serving import ServingModel, prepare
from schemas.errors import BadRequest, NotReady, ReleaseRejected
from schemas.parsing import shown

__all__ = ["KEPT_S", "Beside"]

KEPT_S = 600.0
"Seconds for which a release that is not asked for any more stays loaded."


class Beside:
    """Holds at most one release beside the serving one, because a release may take much memory.

    It belongs to the item store's thread.
    """

    def __init__(
        self,
        folder: Path,
        items: ItemStore,
        serving: ModelSlot,
        prepared: Callable[[Path], ServingModel] = prepare,
        kept_s: float = KEPT_S,
    ) -> None:
        """`folder`: the one of the releases; `prepared`: loads and tries one."""
        self._folder = folder
        self._items = items
        self._serving = serving
        self._prepared = prepared
        self._kept_s = kept_s
        self._held = ModelSlot()
        self._loading = asyncio.Lock()
        self._leaving: asyncio.TimerHandle | None = None

    @property
    def name(self) -> str:
        """Name of the release that is held, `none` without one."""
        return self._held.name

    async def slot(self, name: str) -> ModelSlot:
        """Return a slot with a release of the folder; an empty one for `none`.

        Raises:
            BadRequest: `not_found`, the folder has no such release; `release_refused`, it cannot be used.
            NotReady: `busy`, another release is being loaded.
        """
        found = ModelSlot()
        if name != "none":
            found.swap(self._serving.current if name == self._serving.name else await self._loaded(name))
        return found

    async def _loaded(self, name: str) -> Model | None:
        if self._loading.locked():
            raise NotReady("busy", "another release is being loaded here: try again")
        async with self._loading:
            if self._held.name != name:
                folder = self._folder / name
                if not NAME.fullmatch(name) or not folder.is_dir():
                    message = f"this worker's folder has no release {shown(name)}: GET /v1/releases lists them"
                    raise BadRequest("not_found", message, "release")
                self._held.swap(None)  # before the next one is loaded, so that there are never two
                self._held.swap(await self._prepare(folder))
            self._stay()
            return self._held.current

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
        if not self._loading.locked():
            self._held.swap(None)
