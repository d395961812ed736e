"""Failed partitions are reopened: when the group is rejoined, when not, and which records are read again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from agents.metrics import Metrics
from agents.partitions import recovery as module
from agents.partitions.recovery import Key, Recovery
from agents.partitions.users import UserPartition
from schemas.errors import NotReady


@dataclass
class State:
    """State of a partition."""

    changelog: str = "users-changelog"
    trouble: BaseException | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    applied: int = -1
    durable: int = -1
    probe_reason: str = ""
    spoiled: bool = False

    def fail(self, error: BaseException) -> None:
        self.ready.clear()
        self.trouble = self.trouble or error


@dataclass
class Part:
    """A partition that was opened."""

    partition: int = 0
    state: State = field(default_factory=State)

    def opened(self) -> UserPartition:
        return cast("UserPartition", self)  # a `Recovery` looks at no more of one


@dataclass
class Copies:
    """Standby copies."""

    broken: bool = False

    def damaged(self) -> bool:
        return self.broken


@dataclass
class World:
    """The ownership and the group of a worker. Rejoining opens all partitions that can be opened."""

    parts: list[Part] = field(default_factory=list)
    standby: Copies = field(default_factory=Copies)
    generation: int = 1
    refusals: int = 0
    "Number of attempts to open that fail."
    joins: bool = True
    calls: list[str] = field(default_factory=list)
    tried: list[list[str]] = field(default_factory=list)
    "Keys of each attempt without a rebalance."

    def troubled(self) -> list[Part]:
        return [part for part in self.parts if part.state.trouble is not None]

    def _open(self) -> bool:
        if self.refusals:
            self.refusals -= 1
            return False
        for part in self.troubled():
            part.state.trouble = None
            part.state.ready.set()
        return True

    async def reopen(self, generation: int, keys: Collection[Key]) -> bool:
        self.calls.append(f"reopen in {generation}")
        self.tried.append(sorted(str(key) for key in keys))
        return self._open()

    async def rejoin(self) -> int:
        self.calls.append("rejoin")
        if not self.joins:
            return -1
        self.generation += 1
        self.standby.broken = False
        if self.troubled():
            self._open()
        return self.generation


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    class AtOnce:
        def __init__(self, *_: Any) -> None: ...

        def failed(self) -> float:
            return 0.0

    monkeypatch.setattr(module, "BackOff", AtOnce)
    return World([Part(0), Part(1)])


@asynccontextmanager
async def recovering(world: World) -> AsyncIterator[Recovery]:
    made = Recovery(world, Metrics(), asyncio.Lock(), lambda: world.generation, world.rejoin, asyncio.Event())  # type: ignore[arg-type]
    task = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - the task under test is watched from outside
            await asyncio.sleep(0)


async def test_the_group_is_joined_before_a_partition_is_opened(world: World) -> None:
    async with recovering(world) as recovery:
        recovery.failed(world.parts[0].opened(), NotReady("x", "y"))
        assert not world.parts[0].state.ready.is_set()
        await until(world.parts[0].state.ready.is_set)
    assert world.calls == ["rejoin"]


async def test_what_cannot_be_opened_is_tried_without_a_rebalance_and_read_again_then(world: World) -> None:
    world.refusals = 4
    async with recovering(world) as recovery:
        recovery.failed(world.parts[0].opened(), NotReady("x", "y"))
        recovery.due.set()
        while world.troubled():
            recovery.due.set()  # as the assignment does, which finds it still in trouble
            await asyncio.sleep(0)
        await until(lambda: world.calls[-1] == "rejoin" and not world.troubled())
    assert world.calls == ["rejoin", *["reopen in 2"] * 4, "rejoin"]


async def test_a_new_failure_is_confirmed_by_the_group_again(world: World) -> None:
    """The owner may have changed since the last failure, in a generation that this worker did not notice."""
    async with recovering(world) as recovery:
        for n in (1, 2, 3):
            recovery.failed(world.parts[0].opened(), NotReady("x", "y"))
            await until(lambda n=n: world.calls.count("rejoin") == n and not world.troubled())  # type: ignore[misc]
    assert world.calls == ["rejoin"] * 3


async def test_a_group_that_cannot_be_joined_is_asked_again(world: World) -> None:
    world.joins = False
    async with recovering(world) as recovery:
        recovery.failed(world.parts[0].opened(), NotReady("x", "y"))
        await until(lambda: world.calls.count("rejoin") > 3)
        world.joins = True
        await until(world.parts[0].state.ready.is_set)
    assert set(world.calls) == {"rejoin"}


async def test_damaged_copies_are_made_anew_by_joining_also_after_an_earlier_failure(world: World) -> None:
    async with recovering(world) as recovery:
        recovery.failed(world.parts[0].opened(), NotReady("x", "y"))
        await until(world.parts[0].state.ready.is_set)
        world.standby.broken = True
        recovery.due.set()
        await until(lambda: not world.standby.broken)
    assert world.calls == ["rejoin", "rejoin"]


def waits_of(failures: int, again: Callable[[State, int], None]) -> list[float]:
    """Seconds before each attempt to open a partition that fails so often; `again` opens it before the n-th failure."""
    world = World([Part(0), Part(1)])
    recovery = resting(world)
    found = []
    for n in range(failures):
        world.parts[0] = Part(0)
        again(world.parts[0].state, n)
        recovery.failed(world.parts[0].opened(), NotReady("x", "y"))
        found.append(recovery._due_at["users-changelog", 0])
    return found


def resting(world: World) -> Recovery:
    """Recovery at time 0, which does not run."""
    lock, due = asyncio.Lock(), asyncio.Event()
    return Recovery(world, Metrics(), lock, lambda: world.generation, world.rejoin, due, lambda: 0.0)  # type: ignore[arg-type]


GROWING = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
SHORT = [min(wait_s, 4.0) for wait_s in GROWING]


def test_failures_that_have_nothing_to_do_with_each_other_do_not_add_up() -> None:
    def again(state: State, n: int) -> None:
        state.durable, state.applied = 10 * n, 10 * n + 10  # what the last one failed at was committed since

    assert waits_of(8, again) == SHORT


def test_a_transaction_that_fails_each_time_is_tried_at_growing_intervals() -> None:
    def again(state: State, n: int) -> None:
        state.durable, state.applied, state.probe_reason = 5, 15, "x" if n else ""

    assert waits_of(8, again) == GROWING


def test_an_empty_transaction_that_fails_each_time_is_tried_at_growing_intervals() -> None:
    def again(state: State, n: int) -> None:
        state.durable = state.applied = 15
        state.probe_reason = "x" if n else ""

    assert waits_of(8, again) == GROWING


def test_a_record_that_fails_each_time_does_not_keep_the_group_from_work() -> None:
    """All records before it are committed each time."""

    def again(state: State, _: int) -> None:
        state.durable = state.applied = 89
        state.spoiled = True

    assert waits_of(8, again) == GROWING


def test_a_source_that_begins_anew_is_past_what_failed_before() -> None:
    def again(state: State, n: int) -> None:
        state.durable, state.applied = -1, 1_000 - n

    assert waits_of(8, again) == SHORT


def test_a_partition_does_not_wait_for_another_one() -> None:
    world = World([Part(0), Part(1)])
    recovery = resting(world)
    for _ in range(8):
        world.parts[0].state.spoiled = True
        recovery.failed(world.parts[0].opened(), NotReady("x", "y"))
    recovery.failed(world.parts[1].opened(), NotReady("x", "y"))
    assert recovery._due_at == {("users-changelog", 0): 30.0, ("users-changelog", 1): 0.5}


async def test_only_what_is_due_is_tried(world: World) -> None:
    world.refusals = 1_000
    async with recovering(world) as recovery:

        def tries(n: int) -> bool:
            recovery.due.set()  # as the assignment does, which finds them still in trouble
            recovery._due_at["users-changelog", 0] = float("inf")
            return len(world.tried) >= n

        for part in world.parts:
            recovery.failed(part.opened(), NotReady("x", "y"))
        await until(lambda: tries(3))
    assert world.tried[-2:] == [["('users-changelog', 1)"]] * 2
