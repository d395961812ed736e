"""Pages of a partition's users: each committed user once, in order, and nobody who was erased."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pytest
from fakes import KnowsTopics
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.metrics import Metrics
from agents.partitions.users import UserPartition
from agents.requests.recommend import Recommend
from models.items.store import ItemStore
from schemas.codec import encode
from schemas.columns import ERASE
from schemas.errors import BadRequest, NotReady, RiffleError
from schemas.records import Interaction, UserPage, UserQuery
from schemas.settings import Settings
from schemas.validation import MAX_USERS
from streams.kafka.chunks import Chunk
from streams.kafka.client import page_from
from streams.kafka.writes import JSON_HEADERS, USERS
from streams.state.rocks import block_cache

START = 1_700_000_000_000
names = st.sampled_from(["a", "a\0", "ab", "b", "é", "\U0001f600", "/"])
steps = st.lists(
    st.tuples(st.sampled_from(["event", "event", "event", "shown", "erase"]), names)
    | st.tuples(st.sampled_from(["take", "write", "write", "trim"]), st.just("")),
    max_size=40,
)


class Table:
    """A partition of users whose flushes go to disk without Kafka, in two steps."""

    def __init__(self, folder: Path) -> None:
        self.users = UserPartition(Settings(home=folder, partitions=1), 0, ItemStore(1), block_cache(1), Metrics())
        self.users.state.store.open()
        self.users.state.ready.set()
        self.offset = 0
        self.taken: dict[bytes, bytes | None] = {}
        self.on_disk: set[str] = set()
        self.erased: set[str] = set()
        "Users of `on_disk` who were erased since their row was written."

    async def do(self, step: str, user: str) -> None:
        if step in {"event", "shown", "erase"}:
            action = "impression" if step == "shown" else "view"
            event = Interaction(f"e{self.offset}", user, "i", START + self.offset, action)
            value, headers = (None, [ERASE]) if step == "erase" else (encode("interaction", asdict(event)), [])
            record = Chunk("interactions", 0, [self.offset], [user.encode()], [value], [START], [headers])
            await self.users.apply(record)
            self.offset += 1
            if step == "erase":
                self.erased.add(user)
            elif step == "event":
                self.erased.discard(user)
        elif step == "trim":
            if not self.taken:
                self.users._users.trim(0, 0)
        else:
            if not self.taken:
                flush = await self.users._take()
                self.taken = flush.rows if flush is not None else {}
            if step == "write":
                self.users.state.store.write(self.taken, self.offset)
                rows = {key[1:].decode(): row for key, row in self.taken.items() if key.startswith(b"u")}
                self.on_disk = (self.on_disk | rows.keys()) - {user for user, row in rows.items() if row is None}
                self.taken = {}

    async def all(self, limit: int) -> list[str]:
        """Read all pages."""
        found, query = list[str](), UserQuery(limit=limit)
        while True:
            page = await self.users.page(query)
            found += page.users
            assert len(page.users) <= limit
            if page.next is None:
                return found
            assert (len(page.users), page.next) == (limit, page.users[-1])
            query = UserQuery(page.next, limit)


@settings(max_examples=100)
@given(steps, st.integers(1, 4))
def test_pages_hold_each_committed_user_once_and_no_erased_one(todo: list[tuple[str, str]], limit: int) -> None:
    async def scene(folder: Path) -> None:
        table = Table(folder)
        try:
            for step, user in todo:
                await table.do(step, user)
                expected = sorted(table.on_disk - table.erased, key=str.encode)
                assert await table.all(limit) == expected
        finally:
            table.users.state.store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(scene(Path(folder)))


async def test_a_partition_that_is_restored_lists_nobody(tmp_path: Path) -> None:
    table = Table(tmp_path)
    table.users.state.ready.clear()
    with pytest.raises(NotReady):
        await table.users.page(UserQuery())
    table.users.state.store.close()


# ---- over Kafka, between workers


class Page:
    """A partition with one page."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[UserQuery] = []
        self._error = error

    async def page(self, query: UserQuery) -> UserPage:
        self.asked.append(query)
        if self._error is not None:
            raise self._error
        return UserPage(2, 4, ("a", "ü\0"), "ü\0")


async def asked(value: bytes | None, parts: dict[int, Any], *headers: tuple[str, bytes]) -> tuple[Any, int]:
    """The record that a worker sends for a query on partition 2, and the offset that it may then commit."""
    made = Recommend(Settings(), None, parts, KnowsTopics(), Metrics())  # type: ignore[arg-type]
    all_headers = [*JSON_HEADERS, USERS, *headers]
    made.on_chunk(Chunk("riffle.requests", 2, [7], [None], [value], [START], [all_headers]))
    await asyncio.gather(*made._waiting._tasks)
    (letter,) = [*made._outbox._queue, *made._outputs._queue]
    assert made.committable() == {2: 7}, "it is not answered before it is sent"
    letter.done()
    return letter, made.committable()[2]


REPLY = (("Faust-Ag-ReplyTo", b"replies"), ("Faust-Ag-CorrelationId", b"c"))


async def test_a_query_of_another_worker_is_answered_once() -> None:
    part = Page()
    letter, offset = await asked(orjson.dumps(asdict(UserQuery("x", 5))), {2: part}, *REPLY)
    assert part.asked == [UserQuery("x", 5)]
    assert (letter.topic, offset) == ("replies", 8)
    assert dict(letter.headers)["Faust-Ag-CorrelationId"] == b"c"
    assert page_from(letter.encoded(), letter.headers) == UserPage(2, 4, ("a", "ü\0"), "ü\0")


@pytest.mark.parametrize(
    ("value", "parts", "code"),
    [
        (b"{", {2: Page()}, "not_json"),
        (None, {2: Page()}, "not_json"),
        (b"[" * 100_000, {2: Page()}, "too_deep"),
        (b"[]", {2: Page()}, "invalid_body"),
        (b'{"limit": 501}', {2: Page()}, "invalid_field"),
        (b'{"after": "' + b"x" * 257 + b'"}', {2: Page()}, "invalid_field"),
        (b'{"partition": 1}', {2: Page()}, "invalid_field"),
        (b"{}", {1: Page()}, "not_ready"),
        (b"{}", {2: Page(NotReady("not_ready", "closed"))}, "not_ready"),
        (b"{}", {2: Page(ArithmeticError("a bug"))}, "internal"),
    ],
)
async def test_a_query_that_cannot_be_answered_gets_its_error(value: bytes | None, parts: dict[int, Any], code: str) -> None:
    letter, _ = await asked(value, parts, *REPLY)
    with pytest.raises(RiffleError) as found:
        page_from(letter.encoded(), letter.headers)
    assert found.value.code == code
    assert isinstance(found.value, NotReady) == (code == "not_ready")
    assert isinstance(found.value, BadRequest) == (code not in {"not_ready", "internal"})


async def test_a_query_without_a_reply_topic_is_a_dead_letter() -> None:
    letter, offset = await asked(b"{}", {2: Page()})
    assert (letter.what, letter.topic, offset) == ("dead_letter", "riffle.dead-letters", 8)


def test_a_page_of_the_longest_ids_fits_into_a_kafka_message() -> None:
    page = UserPage(0, 4, ("\x01" * 256,) * MAX_USERS, "\x01" * 256)
    assert len(orjson.dumps({"key": "", "value": page.to_json(), "correlation_id": "c" * 50})) < 1_000_000
