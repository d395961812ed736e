"""A transaction that nobody ends keeps a partition closed, because whether its events count is undecided."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaProducer
from stream_check import partition_state, records

from schemas.errors import NotReady
from schemas.settings import Settings
from streams.kafka.topics import ensure_topics
from streams.state import partitions
from streams.state.partitions import Flush

pytestmark = pytest.mark.integration


async def take() -> Flush:
    return Flush({b"ua": b"row"}, [], 0)


async def test_a_changelog_with_an_open_transaction_is_not_read_past(fresh: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "UNSETTLED_S", 1.0)
    await ensure_topics(fresh)
    async with AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers) as events:
        await events.send_and_wait(fresh.topic("interactions"), b"one", partition=0)
    state = partition_state(fresh, take)
    await state.open()
    assert await state.flush()
    await state.close()

    # of another id, as left by a producer whose end of the transaction the broker lost
    orphan = AIOKafkaProducer(bootstrap_servers=fresh.bootstrap_servers, transactional_id=f"{fresh.app_id}-orphan")
    await orphan.start()
    await orphan.begin_transaction()
    await orphan.send_and_wait(fresh.topic("users-changelog"), b"half", key=b"ub", partition=0)
    state = partition_state(fresh, take)
    with pytest.raises(NotReady, match="find-hanging") as error:
        await state.open()
    assert error.value.code == "transaction_unfinished"
    assert state.store.get_many([b"ua"]) == [b"row"]
    ahead = state.store.position + 2
    state.store.write({b"ub": b"half"}, ahead)  # like a producer whose commit was acknowledged
    await state.close()
    state = partition_state(fresh, take)
    with pytest.raises(NotReady):
        await state.open()
    assert state.store.position == -1, "what may be aborted was kept"
    await state.close()

    await orphan.abort_transaction()
    await orphan.stop()
    state = partition_state(fresh, take)
    await state.open()
    assert state.store.get_many([b"ua", b"ub"]) == [b"row", None]
    assert state.applied == 0
    await state.close()
    assert (await records(fresh, "users-changelog"))[0][b"ua"] == b"row"
