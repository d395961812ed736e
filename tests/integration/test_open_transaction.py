"""A transaction that nobody ends keeps a partition closed: its events are neither applied nor to be applied."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaProducer
from stream_check import records

from schemas.errors import NotReady
from streams import partitions
from streams.partitions import Flush, PartitionState
from streams.settings import Settings
from streams.store import PartitionStore, block_cache
from streams.topics import ensure_topics

pytestmark = pytest.mark.integration


def state_of(settings: Settings) -> PartitionState:
    async def take() -> Flush:
        return Flush({b"ua": b"row"}, [], 0)

    return PartitionState(
        settings,
        PartitionStore(settings.data_dir / "tables" / "open" / "0", block_cache(8)),
        source=settings.topic("interactions"),
        changelog=settings.topic("users-changelog"),
        partition=0,
        group=settings.app_id,
        take=take,
    )


async def test_a_changelog_with_an_open_transaction_is_not_read_past(fresh: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "UNSETTLED_S", 1.0)
    await ensure_topics(fresh)
    async with AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers) as events:
        await events.send_and_wait(fresh.topic("interactions"), b"one", partition=0)
    state = state_of(fresh)
    await state.open()
    assert await state.flush()
    await state.close()

    # of another id, as what is left of a producer whose transaction's end the broker lost
    orphan = AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers, transactional_id=f"{fresh.app_id}-orphan")
    await orphan.start()
    await orphan.begin_transaction()
    await orphan.send_and_wait(fresh.topic("users-changelog"), b"half", key=b"ub", partition=0)
    state = state_of(fresh)
    with pytest.raises(NotReady, match="find-hanging") as error:
        await state.open()
    assert error.value.code == "transaction_unfinished"
    assert state.store.get_many([b"ua"]) == [b"row"]
    ahead = state.store.position + 2
    state.store.write({b"ub": b"half"}, ahead)  # as one who was told that it is committed
    await state.close()
    state = state_of(fresh)
    with pytest.raises(NotReady):
        await state.open()
    assert state.store.position == -1, "what may be aborted was kept"
    await state.close()

    await orphan.abort_transaction()
    await orphan.stop()
    state = state_of(fresh)
    await state.open()
    assert state.store.get_many([b"ua", b"ub"]) == [b"row", None]
    assert state.applied == 0
    await state.close()
    assert (await records(fresh, "users-changelog"))[0][b"ua"] == b"row"
