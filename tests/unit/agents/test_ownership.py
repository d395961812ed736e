"""A worker's report of its table partitions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from agents.metrics import Metrics
from agents.partitions.ownership import Ownership
from models.items.store import ItemStore
from schemas.errors import NotReady
from schemas.settings import Settings
from streams.state.digests import digest


def part(number: int, *, ready: bool, restoring: tuple[int, int] | None = None) -> Any:
    store = SimpleNamespace(position=7, digest=lambda: (8, digest([])))
    state = SimpleNamespace(ready=asyncio.Event(), store=store, restoring=restoring)
    if ready:
        state.ready.set()
    return SimpleNamespace(partition=number, state=state)


async def test_a_partition_that_is_being_restored_is_named_as_such_and_has_no_hash(tmp_path: Path) -> None:
    owned = Ownership(Settings(home=tmp_path), ItemStore(1), Metrics(), None)
    owned.users = {0: part(0, ready=True), 1: part(1, ready=False)}
    owned.covisits = {2: part(2, ready=False, restoring=(30, 40))}
    restoring = [
        {"table": "users", "partition": 1, "role": "restoring", "position": -1},
        {"table": "covisits", "partition": 2, "role": "restoring", "position": -1, "restored": 30, "of": 40},
    ]
    plain = await owned.tables()
    assert plain == [{"table": "users", "partition": 0, "role": "owner", "position": 7}, *restoring]
    hashed = await owned.tables(digests=True)
    assert (hashed[0]["position"], hashed[0]["rows"]) == (8, 0)
    assert hashed[1:] == restoring


async def test_a_partition_whose_store_is_closed_meanwhile_is_left_out(tmp_path: Path) -> None:
    owned = Ownership(Settings(home=tmp_path), ItemStore(1), Metrics(), None)

    def closed() -> None:
        raise NotReady("store_closed", "it is closed")

    leaving = part(0, ready=True)
    leaving.state.store.digest = closed
    owned.users = {0: leaving, 1: part(1, ready=True)}
    assert [facts["partition"] for facts in await owned.tables(digests=True)] == [1]
    assert [facts["partition"] for facts in await owned.tables()] == [0, 1]
