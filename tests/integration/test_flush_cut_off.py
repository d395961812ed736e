"""A flush that is cut off at any moment: its partition still closes, and the next owner finds consistent rows."""

from __future__ import annotations

import asyncio
import gc
import random
from dataclasses import replace

import pytest
from aiokafka.errors import ProducerFenced
from stream_check import partition_state, records

from schemas.errors import StoreCorrupt
from schemas.settings import Settings
from streams.kafka.topics import ensure_topics
from streams.state.partitions import APPLIED, Flush, Output, unpack_applied

pytestmark = pytest.mark.integration
ROWS = 400


class Owner:
    """Owner of partition 0. Every flush writes its number into all rows and to another topic."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.number = 0
        self.state = partition_state(settings, self.take)

    async def take(self) -> Flush:
        value = self.number.to_bytes(4, "little") * 300
        outputs = [Output(self.settings.topic("item-stats"), b"k%d" % n, value, partition=0) for n in range(50)]
        return Flush({b"u%d" % n: value for n in range(ROWS)}, outputs, self.state.applied)


async def test_a_flush_that_is_cut_off_leaves_all_of_it_or_nothing_and_does_not_hold_up_the_end(fresh: Settings) -> None:
    await ensure_topics(fresh)
    rng = random.Random(5)
    number = 0
    for _ in range(12):
        owner = Owner(fresh)
        await owner.state.open()
        # the source topic is empty: the applied offset is limited by its end, so only the rows show what was applied
        owner.number = number = number + 1
        await owner.state.flush()
        owner.number = number = number + 1
        flushing = asyncio.create_task(owner.state.flush())
        await asyncio.sleep(rng.random() * 0.08)
        flushing.cancel()
        await asyncio.gather(flushing, return_exceptions=True)
        async with asyncio.timeout(20):
            await owner.state.close()
        held = (await records(fresh, "users-changelog"))[0]
        values = {value[:4] for key, value in held.items() if key[:1] == b"u"}
        assert len(values) == 1
        told = {value[:4] for value in (await records(replace(fresh, partitions=1), "item-stats"))[0].values()}
        assert told == values, "outputs and rows are of the same flush"
        assert int.from_bytes(values.pop(), "little") in {number - 1, number}
        assert unpack_applied(held[APPLIED])[0] >= -1


async def test_an_owner_that_was_succeeded_cannot_write_any_more(fresh: Settings) -> None:
    await ensure_topics(fresh)
    first, second = Owner(fresh), Owner(replace(fresh, home=fresh.home / "second"))
    await first.state.open()
    first.number = 1
    await first.state.flush()
    await second.state.open()
    first.number, second.number = 2, 3
    with pytest.raises(ProducerFenced):
        await first.state.flush()
    with pytest.raises(StoreCorrupt):
        await first.state.flush()
    await second.state.flush()
    await asyncio.gather(first.state.close(), second.state.close())
    gc.collect()  # the client's unawaited futures warn here rather than in another test
    held = (await records(fresh, "users-changelog"))[0]
    assert {int.from_bytes(value[:4], "little") for key, value in held.items() if key[:1] == b"u"} == {3}
