"""The worker as its page shows it: whose users can be explained, and what is known of partitions."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fakes import FakeService
from serving import Served

from agents.broadcast.beside import Beside
from agents.console import Seen, WorkerConsole
from agents.findings import Health
from agents.health.broker import BrokerProbe
from agents.health.readiness import Readiness
from agents.item_history import keep_history
from agents.metrics import Metrics
from agents.requests.batches import note_batch, note_stages
from agents.requests.recent import Recent
from agents.requests.routing import Others
from agents.samples import Samples
from agents.web.peers import Peers
from agents.web.routes import build_app
from models.items.history import SLOTS, ItemHistory
from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline
from models.state.rows import ItemStatRow, UserRecord
from schemas.errors import BadItem, BadRequest, NotReady
from schemas.records import After, AsOf, Item, Request
from schemas.settings import Settings
from training.release.learned import Learned


class Users:
    """A partition whose users have seen `seen`; events are applied as soon as they are waited for, unless it is `slow`."""

    def __init__(self, *seen: str, ready: bool = True, slow: bool = False) -> None:
        self.state = SimpleNamespace(ready=asyncio.Event(), trouble=None, probe_reason="", applied=7, durable=5)
        if ready:
            self.state.ready.set()
        self.as_of = AsOf(1, 7, 3)
        self._record = UserRecord(counts={"like": len(seen)}, first_ms=1)
        self._slow = slow
        for item_id in seen:
            self._record.seen.add(item_id)

    def rows(self, users: list[str]) -> list[bytes | None]:
        return [self._record.encode() for _ in users]

    async def wait_for(self, after: After, timeout_s: float) -> bool:
        return not self._slow


def console(
    users: dict[int, Users], owners: dict[int, str] | None = None, peers: Peers | None = None, folder: Path = Path("none")
) -> WorkerConsole:
    settings, metrics, health, items = Settings(partitions=4), Metrics(), Health(), ItemStore(4)
    for n in range(9):
        items.upsert(Item(f"i{n}", f"Print {n}"))
    metrics.lag.set(3, topic="riffle.interactions", partition="1")
    held = cast("dict[int, Any]", users)
    pipeline = CandidatePipeline(items)
    seen = Seen(
        held,
        lambda: {2},
        items,
        pipeline,
        Readiness(settings, held, BrokerProbe(settings), health),
        health,
        Samples(metrics),
        Recent(),
        int,
        lambda number: Others((owners or {}).get(number), ("other:1",) if number == 1 else (), False),
        peers or Peers(metrics),
        Beside(folder, items, pipeline.slot),
        lambda: "r1",
        list,
        ItemHistory(items),
    )
    return WorkerConsole(settings, metrics, seen)


def asked(user_id: str, **more: Any) -> Request:
    return replace(Request("r", user_id, k=5), **more)


async def test_a_request_is_explained_from_the_rows_that_this_worker_owns() -> None:
    found = await console({1: Users("i0", "i1")}).explain(asked("1"))
    shown = [item["item_id"] for item in found["slate"]["items"]]
    assert len(shown) == 5
    assert not {"i0", "i1"} & set(shown)
    assert all("explanation" in item for item in found["slate"]["items"])
    assert {entry["name"]: entry["dropped"] for entry in found["trace"]["filters"]}["seen"] == 2
    assert found["slate"]["degraded"] == []


async def test_an_event_that_is_not_applied_in_time_makes_the_slate_stale() -> None:
    for users, after in ((Users(slow=True), After(1, 9)), (Users(), After(2, 9))):
        found = await console({1: users}).explain(asked("1", after=after))
        assert found["slate"]["degraded"] == ["stale"]
    assert (await console({1: Users()}).explain(asked("1", after=After(1, 9))))["slate"]["degraded"] == []


async def test_a_user_of_another_worker_is_explained_by_it_or_by_nobody() -> None:
    with pytest.raises(NotReady, match="cannot be asked"):
        await console({}).explain(asked("1"))
    with pytest.raises(NotReady, match="being restored"):
        await console({1: Users(ready=False)}).explain(asked("1"))
    other = FakeService(catalogue={"far": Item("far")})
    metrics = Metrics()
    peers = Peers(metrics)
    try:
        async with Served(build_app(other), other.metrics) as server:
            near = console({}, {1: f"{server.host}:{server.port}"}, peers)
            found = await near.explain(asked("1", exclude=("x",)))
            assert [item["item_id"] for item in found["slate"]["items"]] == ["far"]
            assert other.requests[0][0] == asked("1", exclude=("x",))
            with pytest.raises(NotReady, match="cannot be asked"):
                await near.explain(asked("1"), here=True)
            other.failure = NotReady("not_ready", "restoring")
            with pytest.raises(NotReady, match="restoring"):
                await near.explain(asked("1"))
    finally:
        await peers.stop()


async def test_every_partition_is_named_with_who_holds_it() -> None:
    found = console({1: Users(), 3: Users(ready=False)}, {0: "other:1"}).live(0)
    assert [entry["role"] for entry in found["partitions"]] == ["elsewhere", "owner", "standby", "restoring"]
    assert found["partitions"][0]["owner"] == "other:1"
    own = found["partitions"][1]
    assert (own["applied"], own["durable"], own["standbys"]) == (7, 5, ["other:1"])
    assert own["lag"] == {"interactions": 3.0, "requests": 0.0}
    assert (found["worker"]["items"], found["worker"]["ready"], found["samples"]["at"]) == (9, False, [])


async def test_items_are_shown_as_they_are_and_unknown_ones_are_left_out() -> None:
    shown = console({})
    cards = shown.cards(["i3", "none", "i1"])
    assert [(card["item_id"], card["title"], card["has_image"]) for card in cards] == [
        ("i3", "Print 3", False),
        ("i1", "Print 1", False),
    ]
    assert len(shown.search("", 4)) == 4
    assert {card["item_id"] for card in shown.search("print", 100)} == {f"i{n}" for n in range(9)}
    assert shown.search("nothing of this", 5) == []


async def test_what_happened_to_an_item_is_counted_once_the_worker_is_ready() -> None:
    shown, ready = console({}), asyncio.Event()
    items, history = shown._seen.items, shown._seen.history
    with pytest.raises(BadItem, match="no such item"):
        shown.history("none", "hour")
    assert (shown.history("i3", "hour")["began"], shown.history("i3", "hour")["at"]) == (None, ())
    items.set_statistics("i3", 1, ItemStatRow({"like": 7}, 0.0, 0, 7.0, 1, 1))
    keeping = asyncio.create_task(keep_history(history, ready.is_set))
    try:
        await asyncio.sleep(0)
        assert history.of("i3", "hour", 0).began_ms is None
        ready.set()
        async with asyncio.timeout(30):
            while True:
                if history.begun:
                    break
                await asyncio.sleep(0.01)
        history.show(["i3", "i5", "unknown"])
        items.set_statistics("i3", 1, ItemStatRow({"like": 8, "skip": 1}, 0.0, 0, 9.0, 2, 1))
        for per in SLOTS:
            found = shown.history("i3", per)
            assert {name: sum(column) for name, column in found["actions"].items()} == {"like": 1, "skip": 1}
            assert (sum(found["shown"]), sum(shown.history("i4", per)["shown"])) == (1, 0)
    finally:
        keeping.cancel()


async def test_without_a_folder_there_are_no_releases(tmp_path: Any) -> None:
    assert await WorkerConsole(Settings(home=tmp_path).resolved(), Metrics(), cast("Seen", None)).releases() == []


def test_the_pipeline_is_shown_as_sums_and_without_requests_as_zeros() -> None:
    shown = console({})
    before = shown.pipeline()
    assert (before["requests"], before["batches"], before["stages"], before["failed"]) == (0.0, 0, [], {})
    assert {source["name"] for source in before["sources"]} >= {"popular", "content"}
    pipeline, metrics = shown._seen.pipeline, shown._metrics
    (slate,) = pipeline.run([asked("1")], [None], [None])
    note_batch(metrics, 1, 0.01)
    note_stages(metrics, [slate])
    metrics.requests.add(outcome="slate")
    metrics.slate_items.add(len(slate.items), source="popular")
    found = shown.pipeline()
    assert (found["requests"], found["batches"], found["candidates"]["select"]) == (1.0, 1.0, len(slate.items))
    assert [stage["name"] for stage in found["stages"]] == list(slate.timings_ms)
    assert all(stage["batches"] == 1 for stage in found["stages"])
    popular = next(source for source in found["sources"] if source["name"] == "popular")
    assert popular["retrieved"] >= popular["shown"] == len(slate.items)


async def test_another_release_answers_only_the_request_that_names_it(tmp_path: Path, learned: Learned) -> None:
    release = learned.write(tmp_path, {})
    shown = console({1: Users("i0")}, folder=tmp_path)
    for name, served in ((release.name, release.name), ("none", "none"), (None, "none")):
        found = await shown.explain(asked("1"), name)
        assert (found["slate"]["release"], found["slate"]["degraded"]) == (served, [])
        assert "i0" not in {item["item_id"] for item in found["slate"]["items"]}
    with pytest.raises(BadRequest, match="has no release"):
        await shown.explain(asked("1"), "other")


async def test_a_release_of_the_owner_is_named_to_it(tmp_path: Path) -> None:
    other = FakeService(catalogue={"far": Item("far")})
    metrics = Metrics()
    peers = Peers(metrics)
    try:
        async with Served(build_app(other), other.metrics) as server:
            near = console({}, {1: f"{server.host}:{server.port}"}, peers)
            assert (await near.explain(asked("1"), "r7"))["slate"]["release"] == "r7"
            other.failure = BadRequest("not_found", "no such release", "release")
            with pytest.raises(BadRequest, match="no such release"):
                await near.explain(asked("1"), "r8")
    finally:
        await peers.stop()
