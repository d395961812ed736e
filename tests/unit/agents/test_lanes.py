"""Chunks are applied in order, once, and only to partitions that are open in their generation; in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import VirtualLoop, run_virtually

from agents.metrics import Metrics
from agents.partitions.lanes import APPLIED_AT_ONCE, Lanes
from schemas.errors import NotReady, StoreCorrupt
from schemas.settings import Settings
from streams.kafka.chunks import Chunk
from streams.state.partitions import Flush, PartitionState

PARTITIONS = 3


class Assignment:
    """A group whose coordinator is the test."""

    def __init__(self) -> None:
        self.settled, self.generation = asyncio.Event(), 1
        self.settled.set()


@dataclass
class World:
    """Record of concurrent, applied and failed chunks."""

    running: int = 0
    most: int = 0
    applied: list[tuple[int, int]] = field(default_factory=list)
    failed: list[int] = field(default_factory=list)
    crashes: list[BaseException] = field(default_factory=list)


class Part:
    """A partition whose chunks take a while; `error` is raised in the middle of a chunk."""

    full = False

    def __init__(self, world: World, partition: int, seconds: float, error: BaseException | None = None) -> None:
        async def nothing() -> Flush | None:
            return None

        self._world, self._seconds, self._error = world, seconds, error
        self.partition = partition
        self.state = PartitionState(
            Settings(),
            None,  # type: ignore[arg-type]
            source="source",
            changelog="changelog",
            partition=partition,
            group="group",
            take=nothing,
        )
        self.state.opened()

    async def apply(self, chunk: Chunk) -> None:
        self._world.running += 1
        self._world.most = max(self._world.most, self._world.running)
        await asyncio.sleep(self._seconds)
        self._world.running -= 1
        if self._error is not None:
            raise self._error
        self._world.applied.append((self.partition, chunk.last_offset))


class Recovery:
    """Records failures, and reopens nothing."""

    def __init__(self, world: World) -> None:
        self._world = world

    def failed(self, part: Any, error: BaseException) -> None:
        self._world.failed.append(part.partition)
        part.state.fail(error)


def lanes_of(world: World) -> tuple[Lanes, Assignment, Metrics]:
    assignment, metrics = Assignment(), Metrics()
    return Lanes(assignment, Recovery(world), metrics, world.crashes.append), assignment, metrics  # type: ignore[arg-type]


def chunk(partition: int, offset: int, generation: int = 1) -> Chunk:
    return Chunk("riffle.interactions", partition, [offset], [b"k"], [b"v"], [0], [[]], generation)


def seconds(partition: int) -> float:
    return 0.01 * (partition + 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, PARTITIONS - 1), st.sampled_from([0, 1, 1, 1])), max_size=40))
def test_each_current_chunk_is_applied_once_in_order_and_few_at_once(given_chunks: list[tuple[int, int]]) -> None:
    async def scene(_: VirtualLoop) -> tuple[World, float]:
        world = World()
        lanes, _assignment, metrics = lanes_of(world)
        parts: Any = {number: Part(world, number, seconds(number)) for number in range(PARTITIONS)}
        for offset, (number, generation) in enumerate(given_chunks):
            await lanes.apply(parts, chunk(number, offset, generation))
        await lanes.stop()
        return world, metrics.chunks_dropped.value(reason="earlier generation")

    world, dropped = run_virtually(scene)
    wanted = [(number, offset) for offset, (number, generation) in enumerate(given_chunks) if generation]
    for number in range(PARTITIONS):
        expected = [one for one in wanted if one[0] == number]
        mine = [one for one in world.applied if one[0] == number]
        # `stop` leaves those that have not begun to the next owner: a part of the end, never of the middle
        assert mine == expected[: len(mine)]
    assert len(wanted) - len(world.applied) <= APPLIED_AT_ONCE
    assert dropped >= len(given_chunks) - len(wanted) - APPLIED_AT_ONCE
    assert world.most <= APPLIED_AT_ONCE
    assert not world.crashes


def alone(error: BaseException | None, then: Callable[[Lanes, Assignment, Part], Any]) -> tuple[World, Part, Lanes, Metrics]:
    async def scene(_: VirtualLoop) -> tuple[World, Part, Lanes, Metrics]:
        world = World()
        lanes, assignment, metrics = lanes_of(world)
        part = Part(world, 0, 0.01, error)
        await then(lanes, assignment, part)
        return world, part, lanes, metrics

    return run_virtually(scene)


async def _two(lanes: Lanes, _: Assignment, part: Part) -> None:
    for offset in (0, 1):
        await lanes.apply({0: part}, chunk(0, offset))  # type: ignore[dict-item]
    await asyncio.sleep(1.0)


def test_a_failure_that_heals_spoils_the_partition_and_drops_what_follows() -> None:
    error = StoreCorrupt("store_unreadable", "a block")
    world, part, lanes, metrics = alone(error, _two)
    assert (world.failed, world.applied, world.crashes, lanes.broken) == ([0], [], [], False)
    assert part.state.trouble is error
    assert metrics.chunks_dropped.value(reason="partition in trouble") == 1
    with pytest.raises(StoreCorrupt):
        asyncio.run(part.state.flush())


def test_a_fault_of_the_program_stops_the_worker_and_nothing_is_applied_any_more() -> None:
    error = ZeroDivisionError()
    world, part, lanes, _ = alone(error, _two)
    assert (world.failed, world.applied, world.crashes, lanes.broken) == ([], [], [error], True)
    assert part.state.trouble is error


def test_chunks_wait_until_the_assignment_is_settled_and_are_then_dropped_if_old() -> None:
    async def rebalance(lanes: Lanes, assignment: Assignment, part: Part) -> None:
        assignment.settled.clear()
        for offset, generation in ((0, 1), (1, 2)):
            asking = asyncio.create_task(lanes.apply({0: part}, chunk(0, offset, generation)))  # type: ignore[dict-item]
            await asyncio.sleep(1.0)
            if offset == 0:
                assignment.generation = 2
                assignment.settled.set()
            await asking
        await asyncio.sleep(1.0)

    world, _, _, metrics = alone(None, rebalance)
    assert world.applied == [(0, 1)]
    assert metrics.chunks_dropped.value(reason="earlier generation") == 1


def test_a_partition_that_is_opened_anew_takes_later_generations_alone() -> None:
    async def reopened(lanes: Lanes, _: Assignment, part: Part) -> None:
        part.state.take_from(2)
        for offset, generation in ((0, 1), (1, 2)):
            await lanes.apply({0: part}, chunk(0, offset, generation))  # type: ignore[dict-item]
        await asyncio.sleep(1.0)

    assert alone(None, reopened)[0].applied == [(0, 1)]


def test_the_first_trouble_of_a_partition_is_kept_and_closes_it_to_readers() -> None:
    part = Part(World(), 0, 0.0)
    first, second = NotReady("x", "first"), NotReady("x", "second")
    part.state.fail(first)
    part.state.fail(second)
    assert part.state.trouble is first
    assert not part.state.ready.is_set()
