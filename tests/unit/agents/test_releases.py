"""The slot follows the announced champion; if a release is refused, the old one keeps serving."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agents.broadcast import releases as module
from agents.broadcast.releases import Releases
from agents.metrics import Metrics
from schemas.errors import ReleaseRejected
from schemas.settings import Settings
from streams.kafka.announce import CHAMPION, Announcement
from streams.kafka.chunks import Chunk


class Slot:
    """A slot that prepares only the releases that the test allows."""

    def __init__(self) -> None:
        self.name = "none"
        self.refused: dict[str, str] = {}
        self.failure: Exception | None = None

    def swap(self, model: Any) -> None:
        self.name = "none" if model is None else model.name

    def prepare(self, folder: Path, _sha: str) -> Any:
        if self.failure is not None:
            raise self.failure
        synced = iter([False, False, True])
        return SimpleNamespace(
            name=folder.name, synced=lambda _: next(synced), sync=lambda _: None, rows=SimpleNamespace(indexed=True)
        )


@pytest.fixture
def slot(monkeypatch: pytest.MonkeyPatch) -> Slot:
    def announced(value: bytes | None) -> Announcement | None:
        return None if value is None else SimpleNamespace(release=value.decode(), manifest_sha256="")  # type: ignore[return-value]

    monkeypatch.setattr(module, "decode_announcement", announced)
    monkeypatch.setattr(module, "fetch_release", lambda folder, wanted: folder / wanted.release)
    made = Slot()
    monkeypatch.setattr(module, "prepare", made.prepare)
    return made


def made(slot: Slot) -> tuple[Releases, Metrics]:
    metrics = Metrics()
    return Releases(Settings(), slot, None, metrics), metrics  # type: ignore[arg-type]


def announce(releases: Releases, name: str | None, key: str = CHAMPION) -> None:
    releases.on_models(Chunk("riffle.models", 0, [0], [key.encode()], [name.encode() if name else None], [0], [[]]))


async def test_the_newest_announcement_serves_and_another_key_is_passed_over(slot: Slot) -> None:
    releases, metrics = made(slot)
    announce(releases, "r1")
    announce(releases, "r2")
    announce(releases, "r3", key="challenger")
    await releases.take_up()
    assert slot.name == "r2"
    assert metrics.releases.value(outcome="served") == 1
    announce(releases, None)
    await releases.take_up()
    assert (slot.name, metrics.releases.value(outcome="withdrawn")) == ("none", 1)


async def test_a_refused_release_leaves_the_old_one_serving_and_says_why(slot: Slot) -> None:
    releases, metrics = made(slot)
    announce(releases, "r1")
    await releases.take_up()
    slot.failure = ReleaseRejected("parity", "it differs")
    announce(releases, "r2")
    await releases.take_up()
    assert (slot.name, slot.refused) == ("r1", {"r2": "it differs"})
    assert metrics.releases.value(outcome="refused", code="parity") == 1
    slot.failure = None
    announce(releases, "r2")
    await releases.take_up()
    assert (slot.name, slot.refused) == ("r2", {})


async def test_a_release_with_a_name_that_is_none_is_refused(slot: Slot) -> None:
    releases, metrics = made(slot)
    announce(releases, "../r1")
    await releases.take_up()
    assert slot.name == "none"
    assert metrics.releases.value(outcome="refused", code="bad_name") == 1


async def test_what_cannot_be_fetched_is_tried_again(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.0)
    releases, metrics = made(slot)
    slot.failure = OSError("no network")
    announce(releases, "r1")
    await releases.take_up()
    assert (slot.name, metrics.releases.value(outcome="refused", code="not_fetched")) == ("none", 1)
    slot.failure = None
    await releases._changed.wait()
    await releases.take_up()
    assert slot.name == "r1"


async def test_a_release_is_loaded_within_the_context_that_keeps_others_away(slot: Slot) -> None:
    within: list[str] = []

    @asynccontextmanager
    async def alone() -> AsyncIterator[None]:
        within.append(f"begun at {slot.name}")
        yield
        within.append(f"ended at {slot.name}")

    releases = Releases(Settings(), slot, None, Metrics(), alone=alone)  # type: ignore[arg-type]
    announce(releases, "r1")
    await releases.take_up()
    assert (within, slot.name) == (["begun at none", "ended at none"], "r1")
