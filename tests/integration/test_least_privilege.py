"""A worker with exactly the printed rights serves; one right that is taken away is refused by name, and nothing is lost.

`make faults FAULT=rights` starts a worker without each of its rights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from guarded import CODES, PEOPLE, WITHIN_S, Guarded, guarded_broker
from secured_broker import PASSWORD, Secured

from schemas.settings import Settings

pytestmark = pytest.mark.integration

CASES = [
    ("topic", "users-changelog", "Write", "users-changelog-0 is being reopened"),
    ("topic", "interactions", "Read", "reading from Kafka"),
    ("topic", "requests", "Read", "reading from Kafka"),
    ("topic", "replies", "Write", "reply to {user}.replies failed"),
    ("group", "{user}", "Read", "{user}"),
    ("transactional-id", "{user}-", "Write", "is being reopened"),
]
"Kind, name and operation of a right, and what the log says of its loss."


@pytest.fixture(scope="module")
def broker(stack: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with guarded_broker(stack, tmp_path_factory.mktemp("guarded")) as made:
        yield made


async def test_the_printed_rights_suffice_and_the_loss_of_one_is_named_and_loses_nothing(
    broker: Secured, tmp_path: Path
) -> None:
    one = Guarded(broker, tmp_path)
    await one.prepare()
    await one.feed()
    await asyncio.to_thread(one.worker.start)
    process = one.worker.process
    assert process is not None
    try:
        await one.serves()
        said = (await one.get("/readyz"))[1]
        assert (said["ready"], said["warnings"]) == (True, {})
        status, refused = await one.as_operator("POST", "/v1/releases/rollback")
        assert (status, refused["error"]["code"]) == (400, "release_refused"), "it may read and announce releases"
        assert (await one.as_operator("GET", "/v1/letters"))[0] == 200
        log = one.log()
        assert "AUTHORIZATION" not in log.upper()
        assert "Traceback" not in log
        for kind, name, operation, about in CASES:
            right = one.right(kind, name.format(user=one.name), operation)
            since = len(one.log())
            await asyncio.to_thread(one.take, [right])
            await one.feed()
            await one.refusal(CODES[kind], about.format(user=one.name), since)
            await asyncio.to_thread(one.give, [right])
            await one.serves()
        # an event that cannot be used waits until its dead letter may be written, and so do those after it
        right, since = one.right("topic", "dead-letters", "Write"), len(one.log())
        await asyncio.to_thread(one.take, [right])
        await one.feed_bad()
        await one.feed()
        await one.refusal(CODES["topic"], "is being reopened", since)
        await asyncio.to_thread(one.give, [right])
        await one.serves()
        async with asyncio.timeout(WITHIN_S):  # it is written with the next commit
            while await one.letters() != 1:  # noqa: ASYNC110 - another process causes the change
                await asyncio.sleep(0.1)
        assert process.poll() is None, "it recovers without a restart"
        assert one.sent == len(CASES) + 2
        assert len(PEOPLE) > one.settings.partitions
    finally:
        await asyncio.to_thread(one.worker.stop)
    assert process.returncode == 0
    assert PASSWORD not in one.log()
