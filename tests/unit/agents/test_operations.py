"""What an operator does from the page: one action at a time, until it has ended, and only to the champion that they saw."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from agents import operations, promotion
from agents.operations import WorkerOperations
from agents.promotion import Change, challenge, promote, roll_back, rollback
from models.release.release import manifest_sha256
from schemas.errors import BadRequest, NotReady, ReleaseRejected
from schemas.settings import Settings
from streams.kafka.announce import CHALLENGER, CHAMPION, PREVIOUS, Announcement
from training.release.learned import Learned


class Topic:
    """The topic of announcements, in memory."""

    def __init__(self, *known: tuple[str, Announcement | None]) -> None:
        self.records = list(known)

    async def read(self, settings: Settings) -> Sequence[tuple[str, Announcement | None]]:
        return list(self.records)

    async def write(self, settings: Settings, aliases: Mapping[str, Announcement | None]) -> None:
        self.records += aliases.items()

    @property
    def aliases(self) -> dict[str, str | None]:
        return {alias: named.release if named else None for alias, named in self.records}


@pytest.fixture
def topic(monkeypatch: pytest.MonkeyPatch) -> Topic:
    found = Topic()
    monkeypatch.setattr(promotion, "announcements", found.read)
    monkeypatch.setattr(promotion, "announce", found.write)
    return found


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, releases=str(tmp_path / "releases"))


class Slow:
    """An action that goes on until it is let go."""

    def __init__(self, note: Callable[[], None] = lambda: None) -> None:
        self.go, self.ended = threading.Event(), 0
        self._note = note

    def __call__(self, *_: Any, **__: Any) -> Change:
        assert self.go.wait(60)
        self.ended += 1
        return _Noted("r1", "none", {}, self._note)


class _Noted(Change):
    def __init__(self, champion: str, previous: str, decisions: Mapping[str, Any], act: Callable[[], None]) -> None:
        super().__init__(champion, previous, decisions)
        object.__setattr__(self, "act", act)

    __slots__ = ("act",)

    def note(self) -> None:
        self.act()  # type: ignore[attr-defined]


async def test_an_action_that_was_answered_too_early_keeps_others_out_until_it_has_ended(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    monkeypatch.setattr(operations, "promotion", slow)
    monkeypatch.setattr(operations, "rollback", lambda *_, **__: Change("none", "r1", {}))
    monkeypatch.setattr(operations, "TIMEOUT_S", 0.01)
    worker = WorkerOperations(settings)
    with pytest.raises(NotReady) as caught:
        await worker.promote("r1")
    assert caught.value.code == "under_way"
    for _ in range(2):
        with pytest.raises(NotReady) as caught:
            await worker.roll_back()
        assert (caught.value.code, slow.ended) == ("busy", 0)
    slow.go.set()
    monkeypatch.setattr(operations, "TIMEOUT_S", 60.0)
    while True:  # until the thread has ended
        try:
            answer = await worker.roll_back()
            break
        except NotReady as error:
            assert error.code == "busy"
            await asyncio.sleep(0)
    assert (answer, slow.ended) == ({"champion": "none", "previous": "r1"}, 1)


async def test_an_action_is_answered_before_it_is_recorded_in_mlflow(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, noted = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def note() -> None:
        assert answered.wait(60)
        loop.call_soon_threadsafe(noted.set)

    slow = Slow(note)
    slow.go.set()
    monkeypatch.setattr(operations, "promotion", slow)
    worker = WorkerOperations(settings)
    assert await worker.promote("r1") == {"champion": "r1", "previous": "none"}
    assert await worker.promote("r1") == {"champion": "r1", "previous": "none"}, "the next action does not wait for it either"
    answered.set()
    async with asyncio.timeout(60):
        await noted.wait()


async def test_an_action_on_another_champion_than_the_expected_one_changes_nothing(settings: Settings, topic: Topic) -> None:
    topic.records += [(PREVIOUS, Announcement("r1", "0" * 64)), (CHAMPION, Announcement("r2", "1" * 64))]
    before, worker = list(topic.records), WorkerOperations(settings)
    with pytest.raises(BadRequest) as caught:
        await worker.roll_back("r1")
    assert (caught.value.code, topic.records) == ("champion_changed", before)
    assert await worker.roll_back("r2") == {"champion": "r1", "previous": "r2"}
    with pytest.raises(BadRequest) as caught:  # the same request once more does not go forward again
        await worker.roll_back("r2")
    assert (caught.value.code, topic.aliases[CHAMPION]) == ("champion_changed", "r1")
    assert await asyncio.to_thread(roll_back, settings) == {"champion": "r2", "previous": "r1"}, (
        "without it, a rollback is a toggle as before"
    )


def test_a_promotion_names_the_champion_that_it_replaces(settings: Settings, topic: Topic, learned: Learned) -> None:
    name = learned.write(settings.releases_dir, {"gate": {"passed": True}}).name
    topic.records.append((CHAMPION, Announcement("r2", "1" * 64)))
    with pytest.raises(ReleaseRejected) as caught:
        promotion.promotion(settings, name, force=True, expected="none")
    assert (caught.value.code, topic.aliases) == ("champion_changed", {CHAMPION: "r2"})
    assert promotion.promotion(settings, name, force=True, expected="r2").facts() == {"champion": name, "previous": "r2"}


def test_nothing_is_announced_after_the_time_of_an_action(settings: Settings, topic: Topic) -> None:
    topic.records.append((CHAMPION, Announcement("r2", "1" * 64)))
    before = list(topic.records)
    with pytest.raises(NotReady) as caught:
        rollback(settings, until=0.0)
    assert (caught.value.code, topic.records) == ("broker_unavailable", before)


@pytest.mark.parametrize("alias", [CHAMPION, PREVIOUS, CHALLENGER, "of an earlier version"])
def test_a_release_keeps_the_address_under_which_others_fetch_it(
    settings: Settings, topic: Topic, learned: Learned, alias: str
) -> None:
    folder = learned.write(settings.releases_dir, {"gate": {"passed": True}})
    known = Announcement(folder.name, manifest_sha256(folder), "s3://bucket/releases/r")
    topic.records += [(alias, known), (alias, Announcement(folder.name, "0" * 64, "s3://bucket/another content"))]
    topic.records.append((CHAMPION, Announcement("between", "2" * 64)))
    challenge(settings, folder.name)
    assert dict(topic.records)[CHALLENGER] == Announcement(folder.name, known.manifest_sha256, known.uri)
    promote(settings, folder.name, force=True)
    announced = dict(topic.records)[CHAMPION]
    assert announced is not None
    assert (announced.release, announced.uri) == (folder.name, known.uri)


def test_a_release_of_another_content_gets_no_address(settings: Settings, topic: Topic, learned: Learned) -> None:
    folder = learned.write(settings.releases_dir, {"gate": {"passed": True}})
    topic.records.append((PREVIOUS, Announcement(folder.name, "0" * 64, "s3://bucket/r")))
    promote(settings, folder.name)
    announced = dict(topic.records)[CHAMPION]
    assert announced is not None
    assert announced.uri == ""
