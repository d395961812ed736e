"""The write-behind queue: the newest summary wins, removals are never lost, and failures of the store are only counted."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mirror_contract import keeps, lacks

from schemas.errors import ConfigError, TransientError
from schemas.settings import MIRRORS, Settings
from streams.mirror.contract import Mirror
from streams.mirror.stores import store_at
from streams.mirror.write_behind import BATCH_USERS, WriteBehind


class MemoryStore:
    """A store in memory, which may be unavailable."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        self.sizes: list[int] = []
        self.away = False
        self.closed = False
        self.gate = asyncio.Event()
        "Writes end once it is set."
        self.gate.set()
        self.good = 1_000
        "Number of writes before the store is away."

    async def write(self, values: Mapping[str, bytes | None]) -> None:
        await self.gate.wait()
        self.good -= 1
        if self.away or self.good < 0:
            raise TransientError("mirror_unavailable", "away")
        self.sizes.append(len(values))
        for user_id, value in values.items():
            if value is None:
                self.held.pop(user_id, None)
            else:
                self.held[user_id] = value

    async def read(self, user_id: str) -> bytes | None:
        if self.away:
            raise TransientError("mirror_unavailable", "away")
        return self.held.get(user_id)

    async def close(self) -> None:
        self.closed = True


@given(st.lists(st.sampled_from(["put", "erase", "flush", "fail"]), max_size=12))
def test_nothing_from_before_an_erasure_stays(steps: list[str]) -> None:
    """Also when a summary from after it replaced the removal in the queue, and that summary was lost."""

    async def run() -> None:
        store = MemoryStore()
        mirror = WriteBehind(store)
        erased = 0
        for n, step in enumerate(steps):
            if step == "put":
                mirror.put("a", {"n": n})
            elif step == "erase":
                mirror.remove("a")
                erased = n
            else:
                store.away = step == "fail"
                await mirror.flush()
        store.away = False
        await mirror.stop()
        found = await mirror.get("a")
        assert found is None or int(str(found["n"])) >= erased

    asyncio.run(run())


@pytest.mark.parametrize("later", [False, True])
async def test_an_erasure_during_a_write_is_not_taken_for_written(later: bool) -> None:
    store = MemoryStore()
    mirror = WriteBehind(store)
    mirror.put("a", {"n": 1})
    store.gate.clear()
    writing = asyncio.create_task(mirror.flush())
    await asyncio.sleep(0)
    mirror.remove("a")
    if later:
        mirror.put("a", {"n": 2})
    store.good = 1
    store.gate.set()
    await writing
    assert store.held == {"a": b'{"n":1}'}
    store.good = 10
    await mirror.stop()
    assert store.held == {}


async def test_a_write_that_is_under_way_at_the_end_is_waited_for() -> None:
    store = MemoryStore()
    store.held["a"] = b"{}"
    mirror = WriteBehind(store, interval_s=0.001)
    await mirror.start()
    store.gate.clear()
    mirror.remove("a")
    while mirror._waiting:  # noqa: ASYNC110 - the mirror is watched from outside
        await asyncio.sleep(0.001)
    stopping = asyncio.create_task(mirror.stop())
    await asyncio.sleep(0.01)
    store.gate.set()
    await stopping
    assert store.held == {}
    assert store.closed


async def test_an_unexpected_error_of_a_store_does_not_end_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    mirror = WriteBehind(store, interval_s=0.001)

    async def broken(values: Mapping[str, bytes | None]) -> None:
        raise ValueError(str(values))

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", broken)
        await mirror.start()
        mirror.remove("a")
        while not mirror.counters["failed"]:  # noqa: ASYNC110 - the mirror is watched from outside
            await asyncio.sleep(0.001)
    store.held["a"] = b"{}"
    while store.held:  # noqa: ASYNC110 - the mirror is watched from outside
        await asyncio.sleep(0.001)
    await mirror.stop()


STEPS = st.lists(st.tuples(st.sampled_from(["put", "remove", "flush", "fail"]), st.sampled_from("abc"), st.integers(0, 9)))


@given(STEPS)
def test_no_removal_is_lost_and_the_newest_summary_wins(steps: list[tuple[str, str, int]]) -> None:
    async def run() -> None:
        store = MemoryStore()
        mirror = WriteBehind(store)
        newest: dict[str, int | None] = {}
        lost = set[str]()
        for step, user, n in steps:
            if step == "put":
                mirror.put(user, {"n": n})
                newest[user] = n
                lost.discard(user)
            elif step == "remove":
                mirror.remove(user)
                newest[user] = None
                lost.discard(user)
            else:
                store.away = step == "fail"
                lost |= {u for u, value in mirror._waiting.items() if value is not None} if store.away else set()
                await mirror.flush()
        store.away = False
        await mirror.stop()
        assert store.closed
        for user, last in newest.items():
            if user not in lost:
                assert await mirror.get(user) == (None if last is None else {"n": last})

    asyncio.run(run())


async def test_what_does_not_fit_is_dropped_and_counted_but_no_removal() -> None:
    store = MemoryStore()
    mirror = WriteBehind(store, capacity=2)
    for user in ("a", "b", "c", "a"):
        mirror.put(user, {"user_id": user})
    mirror.remove("d")
    assert mirror.counters == {"dropped": 1}
    await mirror.flush()
    assert {name: orjson.loads(value)["user_id"] for name, value in store.held.items()} == {"a": "a", "b": "b"}
    assert mirror.counters == {"dropped": 1, "written": 3}


async def test_a_store_is_given_so_many_users_at_once() -> None:
    store = MemoryStore()
    mirror = WriteBehind(store)
    for n in range(BATCH_USERS * 2 + 1):
        mirror.put(str(n), {})
    await mirror.flush()
    assert store.sizes == [BATCH_USERS, BATCH_USERS, 1]


async def test_a_store_that_is_away_costs_counts() -> None:
    store = MemoryStore()
    store.away = True
    mirror: Mirror = WriteBehind(store)
    assert await mirror.get("a") is None
    assert mirror.counters == {"failed_reads": 1}


async def test_the_store_in_memory_keeps_the_contract() -> None:
    """So that what is shown with it here holds for every store."""
    store = MemoryStore()
    await keeps(store)
    store.away = True
    await lacks(store)


@pytest.mark.parametrize("scheme", MIRRORS)
async def test_every_scheme_that_the_settings_allow_has_a_store(scheme: str, tmp_path: Path) -> None:
    """None is there: what a store says of that is the same for all."""
    url = f"{scheme}://{tmp_path / 'absent'}" if scheme == "unix" else f"{scheme}://127.0.0.1:1/0"
    assert Settings(home=tmp_path, redis_url=url).redis == url
    await lacks(store_at(url, "x."))


def test_another_scheme_is_refused_with_those_that_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(home=tmp_path, redis_url="memcached://h")
    assert all(f"{scheme}://" in caught.value.message for scheme in MIRRORS)
