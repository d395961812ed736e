"""A worker is wired without a broker, and its parts start and stop in a fixed order."""

from __future__ import annotations

import asyncio
import dataclasses
import typing
from pathlib import Path

import pytest

from agents.partitions.ownership import Ownership
from agents.parts import Parts
from agents.tasks import Tasks
from agents.wiring import create_app
from schemas.errors import ConfigError
from schemas.settings import Settings
from streams.kafka.assignor import ON_DISK


def test_no_part_is_optional_or_can_be_replaced(tmp_path: Path) -> None:
    parts = create_app(Settings(home=tmp_path)).parts
    for name, kind in typing.get_type_hints(Parts).items():
        assert type(None) not in typing.get_args(kind), name
        assert getattr(parts, name) is not None
    with pytest.raises(dataclasses.FrozenInstanceError):
        parts.lanes = parts.lanes  # type: ignore[misc]


def test_agents_have_the_names_that_their_topics_and_positions_hang_on(tmp_path: Path) -> None:
    app = create_app(Settings(home=tmp_path))
    assert set(app.agents) == {"riffle.features", "riffle.neighbours", "riffle.recommend"}


def test_two_workers_of_one_process_share_nothing(tmp_path: Path) -> None:
    one, other = (create_app(Settings(home=tmp_path / name)).parts for name in ("a", "b"))
    shared = [f.name for f in dataclasses.fields(Parts) if getattr(one, f.name) is getattr(other, f.name)]
    assert shared == []


def test_a_folder_serves_one_worker_and_its_tables_are_known_to_the_assignor(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    ownerships = [Ownership(settings, None, None, None) for _ in range(2)]  # type: ignore[arg-type]
    ownerships[0].lock()
    with pytest.raises(ConfigError, match="another worker"):
        ownerships[1].lock()
    for number in ("0", "3", "other"):
        settings.table_dir("users", 0).parent.joinpath(number).mkdir(parents=True, exist_ok=True)
    assert ownerships[1].held() == {0: ON_DISK, 3: ON_DISK}
    assert ownerships[1]._lock is None
    assert ownerships[0]._lock is not None
    ownerships[0]._lock.close()


async def test_a_task_that_fails_stops_the_worker_and_the_others_are_cancelled_by_name() -> None:
    crashes: list[BaseException] = []
    tasks, error = Tasks(crashes.append), ValueError()
    ended: list[str] = []

    async def fails() -> None:
        raise error

    async def waits(name: str) -> None:
        try:
            await asyncio.sleep(1e6)
        finally:
            ended.append(name)

    tasks.start("fails", fails())
    tasks.start("one", waits("one"))
    tasks.start("kept", waits("kept"))
    await tasks.wait("fails")
    await tasks.wait("never started")
    await tasks.cancel(but=("kept",))
    assert (crashes, ended) == ([error], ["one"])
    await tasks.cancel()
    assert ended == ["one", "kept"]
