"""A worker that starts without one of its rights: the refusal is named, nothing is lost, and with the right it serves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from guarded import CODES, Guarded, guarded_broker
from secured_broker import Secured

from schemas.settings import Settings
from streams.kafka.rights import Right, rights_of
from streams.kafka.topics import WORKER

pytestmark = pytest.mark.integration

USER = "USER"
SHAPE = Settings(topic_prefix=f"{USER}.", app_id=USER)
SPARE = {
    ("USER.", "Describe"),  # whoever may read or write a topic may describe it; needed for reply topics of other names
    ("USER.requests", "Write"),  # for users of other workers, if these cannot be reached over HTTP
    ("USER.replies", "Read"),
    ("USER.replies", "Create"),
    ("USER.interactions", "Write"),  # for events over HTTP
    ("USER.items", "Write"),
    ("USER.rank", "Write"),  # with ranking processes
    ("USER.rank-acks", "Read"),
    ("USER.models", "Write"),  # for what an operator does on the page
    ("USER.dead-letters", "Read"),
    ("USER.dead-letters", "Write"),  # nothing becomes a dead letter here
    ("USER-", "Describe"),  # whoever may write a transactional id may describe it
}
"Rights without which a single worker answers this test, by name and operation."


@pytest.fixture(scope="module")
def broker(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with guarded_broker(stack, tmp_path_factory.mktemp("guarded")) as made:
        yield made


@pytest.mark.parametrize("right", rights_of(WORKER, SHAPE), ids=lambda right: f"{right.operation}-{right.name}")
async def test_rights_that_are_missing_at_the_start(broker: Secured, tmp_path: Path, right: Right) -> None:
    one = Guarded(broker, tmp_path)
    (lacking,) = [own for own in one.rights if own == Right(right.kind, right.name.replace(USER, one.name), *_rest(right))]
    await one.prepare([lacking])
    await one.feed()
    process = await asyncio.to_thread(one.worker.spawn)
    try:
        if (right.name, right.operation) in SPARE:
            await one.serves(60)
            await asyncio.to_thread(one.give, [lacking])
        else:
            await one.refusal(CODES[right.kind], "", within_s=60)
            await one.feed()
            await asyncio.to_thread(one.give, [lacking])
            if process.poll() is not None:  # its supervisor starts it again
                await asyncio.to_thread(one.worker.spawn)
        await one.serves(60)
    finally:
        await asyncio.to_thread(one.worker.stop)


def _rest(right: Right) -> tuple[str, bool]:
    return right.operation, right.prefixed
