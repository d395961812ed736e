"""A release is loaded beside the serving one only to compare slates: one at a time, and not for long."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from native_reading import until

from agents.broadcast.beside import Beside
from models.items.store import ItemStore
from models.pipeline.slot import ModelSlot
from schemas.errors import BadRequest, NotReady, ReleaseRejected


class Folder:
    """A folder of releases whose loading can be held back."""

    def __init__(self, path: Path, *names: str) -> None:
        self.path = path
        self.loads: list[str] = []
        self.may_end = threading.Event()
        self.may_end.set()
        for name in names:
            (path / name).mkdir()

    def prepare(self, folder: Path) -> Any:
        self.loads.append(folder.name)
        if folder.name.startswith("bad"):
            self.may_end.wait(30)
            raise ReleaseRejected("graph", "a graph does not run")
        self.may_end.wait(30)
        steps = iter([False, True])
        rows = SimpleNamespace(indexed=True)
        return SimpleNamespace(name=folder.name, synced=lambda _: next(steps, True), sync=lambda _: None, rows=rows)

    def beside(self, serving: str = "none", kept_s: float = 60.0, patience_s: float = 30.0) -> Beside:
        slot = ModelSlot()
        if serving != "none":
            slot.swap(cast("Any", SimpleNamespace(name=serving)))
        return Beside(self.path, ItemStore(4), slot, self.prepare, kept_s, patience_s)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, "r1", "r2", "bad")


async def test_a_release_is_loaded_once_and_its_place_is_taken_by_the_next(folder: Folder) -> None:
    beside = folder.beside("r0")
    for name in ("r1", "r1", "r2", "r1"):
        assert (await beside.slot(name)).name == name == beside.name
    assert folder.loads == ["r1", "r2", "r1"]


async def test_the_serving_release_and_none_need_no_loading(folder: Folder) -> None:
    beside = folder.beside("r0")
    assert [(await beside.slot(name)).name for name in ("r0", "none")] == ["r0", "none"]
    assert folder.loads == []


async def test_an_unused_release_leaves_and_the_slot_in_use_keeps_it(folder: Folder) -> None:
    beside = folder.beside(kept_s=0.01)
    slot = await beside.slot("r1")
    await until(lambda: beside.name == "none")
    assert slot.name == "r1"


@pytest.mark.parametrize("name", ["r9", "../r1", "", "R1", "r1/", "."])
async def test_what_the_folder_lacks_is_not_found(folder: Folder, name: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await folder.beside().slot(name)
    assert (caught.value.code, caught.value.field) == ("not_found", "release")
    assert folder.loads == []


async def test_a_release_that_cannot_be_used_is_refused_and_tried_anew(folder: Folder) -> None:
    beside = folder.beside()
    for _ in range(2):
        with pytest.raises(BadRequest, match="a graph does not run") as caught:
            await beside.slot("bad")
        assert caught.value.code == "release_refused"
    assert (folder.loads, beside.name) == (["bad", "bad"], "none")


async def test_while_one_is_loaded_another_is_refused(folder: Folder) -> None:
    beside = folder.beside()
    first = asyncio.create_task(beside.slot("r1"))
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="being loaded"):
        await beside.slot("r2")
    assert (await first).name == "r1"


async def test_loading_goes_on_when_a_request_waits_no_longer_and_is_not_begun_twice(folder: Folder) -> None:
    beside = folder.beside(patience_s=0.01)
    folder.may_end.clear()
    for _ in range(3):
        with pytest.raises(NotReady, match="release r1 is being loaded"):
            await beside.slot("r1")
    folder.may_end.set()
    await until(lambda: beside.name == "r1")
    assert (await beside.slot("r1")).name == "r1"
    assert folder.loads == ["r1"]


async def test_loading_goes_on_when_the_request_is_cancelled(folder: Folder) -> None:
    beside = folder.beside()
    folder.may_end.clear()
    request = asyncio.create_task(beside.slot("r1"))
    await until(lambda: folder.loads == ["r1"])
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    folder.may_end.set()
    await until(lambda: beside.name == "r1")


async def test_a_refusal_after_the_request_is_the_answer_to_the_next_one(folder: Folder) -> None:
    beside = folder.beside(patience_s=0.01)
    folder.may_end.clear()
    with pytest.raises(NotReady):
        await beside.slot("bad")
    folder.may_end.set()

    async def answer() -> str:
        try:
            await beside.slot("bad")
        except NotReady:
            return "busy"
        except BadRequest as exc:
            return exc.code
        return "served"

    while (found := await answer()) == "busy":
        pass
    assert (found, folder.loads) == ("release_refused", ["bad"])


async def test_a_release_that_is_to_serve_is_loaded_alone(folder: Folder) -> None:
    beside = folder.beside()
    await beside.slot("r1")
    folder.may_end.clear()
    request = asyncio.create_task(beside.slot("r2"))
    await until(lambda: folder.loads == ["r1", "r2"])
    entered = asyncio.Event()

    async def serve() -> None:
        async with beside.alone():
            entered.set()
            assert beside.name == "none"
            with pytest.raises(NotReady, match="another release is being loaded"):
                await beside.slot("r1")

    serving = asyncio.create_task(serve())
    await asyncio.sleep(0)
    assert not entered.is_set()
    folder.may_end.set()
    assert (await request).name == "r2"
    await serving
    assert beside.name == "none"
    assert (await beside.slot("r1")).name == "r1"
