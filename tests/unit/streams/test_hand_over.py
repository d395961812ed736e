"""The way of chunks from the fetcher to the agents, in virtual time: in order, once, and without a wait where there is room."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import VirtualLoop, run_virtually

from streams.kafka.chunks import Chunk, ChunkedConsumer

EVENTS, REQUESTS = "interactions", "requests"
ACTIVE = {TP(topic, partition) for topic in (EVENTS, REQUESTS) for partition in range(2)}


class Fetcher:
    """Stands for the consumer's thread: holds fetched records until their partition is asked for."""

    def __init__(self) -> None:
        self.held: dict[TP, list[Any]] = defaultdict(list)
        self._changed = asyncio.Event()

    def add(self, tp: TP, records: list[Any]) -> None:
        self.held[tp] += records
        self._changed.set()

    def look_anew(self) -> None:
        self._changed.set()

    async def getmany(self, active: set[TP], timeout: float) -> dict[TP, list[Any]]:  # noqa: ASYNC109 - Faust's signature
        until = asyncio.get_running_loop().time() + timeout
        while not (found := {tp: self.held.pop(tp) for tp in list(self.held) if tp in active}):
            self._changed.clear()
            left = until - asyncio.get_running_loop().time()
            try:
                await asyncio.wait_for(self._changed.wait(), left)
            except TimeoutError:
                return {}
        return found


class Consumer(ChunkedConsumer):
    """The consumer without Faust's start and rebalances."""

    def __init__(self, fetcher: Fetcher, took_s: dict[str, float]) -> None:
        self._deliveries, self._asked, self._skipped = {}, set(), set()
        self._thread: Any = fetcher
        self._read_offset: dict[TP, int] = {}
        self._took_s = took_s
        self._stopped = self.suspend_flow = asyncio.Event()
        self.flow_active = True
        self.queues = {topic: asyncio.Queue[Any](2) for topic in took_s}
        channels = {tp: [SimpleNamespace(queue=self.queues[tp.topic])] for tp in ACTIVE}
        conductor = SimpleNamespace(_tp_to_callback_lock=asyncio.Lock(), _tp_index=channels)
        flow = SimpleNamespace(is_active=lambda: True)
        self.app = SimpleNamespace(
            consumer_generation_id=1, bulk={EVENTS}, prompt={}, topics=conductor, flow_control=flow, should_stop=True
        )
        self.transport = SimpleNamespace(app=self.app)
        self.seen: list[tuple[float, TP, Chunk]] = []

    async def _wait_next_records(self, timeout: float) -> Any:  # noqa: ASYNC109 - Faust's signature
        return await self._getmany(set(ACTIVE), timeout), set(ACTIVE)

    async def wait_first(self, *waits: Any) -> None:
        """Wait for the first, in tasks, as Faust does."""
        tasks = [asyncio.ensure_future(wait) for wait in waits]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def callback(self, message: Any) -> None:
        """Put a message into its agent's queue, as the conductor does."""
        await self.queues[message.topic].put(message)

    async def agent(self, topic: str) -> None:
        while True:
            message = await self.queues[topic].get()
            self.seen.append((asyncio.get_running_loop().time(), message.tp, message.value))
            await asyncio.sleep(self._took_s[topic])


arrivals = st.lists(
    st.tuples(st.sampled_from(sorted(ACTIVE)), st.integers(1, 3), st.sampled_from([0.0, 0.001, 0.004, 0.03])), max_size=30
)


async def played(loop: VirtualLoop, script: list[tuple[TP, int, float]], took_s: dict[str, float]) -> tuple[Consumer, Any]:
    fetcher = Fetcher()
    consumer = Consumer(fetcher, took_s)
    tasks = [loop.create_task(consumer.agent(topic)) for topic in took_s]
    tasks.append(loop.create_task(consumer._drain_messages(SimpleNamespace(_stopped=asyncio.Event()))))
    came: dict[tuple[TP, int], float] = {}
    ends: dict[TP, int] = defaultdict(int)
    for tp, count, gap_s in script:
        await asyncio.sleep(gap_s)
        offsets = range(ends[tp], ends[tp] + count)
        ends[tp] += count
        came |= {(tp, offset): loop.time() for offset in offsets}
        fetcher.add(tp, [SimpleNamespace(offset=n, key=b"k", value=b"v", timestamp=1, headers=()) for n in offsets])
    await asyncio.sleep(60.0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return consumer, came


@settings(max_examples=100, deadline=None)
@given(arrivals, st.sampled_from([0.0, 0.002, 0.1]), st.sampled_from([0.0, 0.002, 0.1]))
def test_each_record_comes_once_and_in_order_whichever_agent_is_slow(script: Any, events_s: float, requests_s: float) -> None:
    consumer, came = run_virtually(lambda loop: played(loop, script, {EVENTS: events_s, REQUESTS: requests_s}))
    offsets: dict[TP, list[int]] = defaultdict(list)
    for _, tp, chunk in consumer.seen:
        offsets[tp] += chunk.offsets
    assert {tp: list(range(len(found))) for tp, found in offsets.items()} == offsets
    assert sum(map(len, offsets.values())) == len(came)


@settings(max_examples=100, deadline=None)
@given(arrivals, st.sampled_from([0.0, 0.002, 0.1]))
def test_requests_wait_neither_for_the_agent_of_events_nor_for_the_next_fetch(script: Any, events_s: float) -> None:
    consumer, came = run_virtually(lambda loop: played(loop, script, {EVENTS: events_s, REQUESTS: 0.0}))
    waits = [at - came[tp, n] for at, tp, chunk in consumer.seen for n in chunk.offsets if tp.topic == REQUESTS]
    assert max(waits, default=0.0) < 1e-4


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12))
def test_an_agent_that_is_behind_never_idles_while_records_are_there(count: int) -> None:
    script = [(TP(EVENTS, 0), 1, 0.0)] * count
    consumer, _ = run_virtually(lambda loop: played(loop, script, {EVENTS: 0.1, REQUESTS: 0.0}))
    times = [at for at, _, _ in consumer.seen]
    assert all(later - earlier < 0.1001 for earlier, later in pairwise(times))
