"""The worker behind the HTTP interface: destinations of records, errors of the broker, and readiness."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, TopicAuthorizationFailedError
from virtual_time import VirtualLoop, run_virtually

from agents.findings import Health
from agents.health.broker import BrokerProbe
from agents.health.looks import Misplaced
from agents.health.readiness import Readiness
from agents.metrics import Metrics
from agents.requests.recent import Recent
from agents.service import LIST_MS, SEND_S, View, WorkerService
from schemas.codec import decode
from schemas.columns import ERASE
from schemas.errors import BadInput, BadItem, BadRequest, NotReady
from schemas.records import Interaction, Item, UserPage, UserQuery
from schemas.settings import Settings
from streams.kafka.healing_producer import HealingProducer, Outgoing


class Producer:
    """Acknowledges at once, fails with `error`, or never answers."""

    def __init__(self, error: BaseException | None = None, *, silent: bool = False) -> None:
        self.records: list[Outgoing] = []
        self._error, self._silent = error, silent

    async def deliver(self, records: Sequence[Outgoing]) -> list[Any]:
        if self._silent:
            await asyncio.sleep(1e6)
        if self._error is not None:
            raise self._error
        self.records += records
        return [SimpleNamespace(partition=record.partition, offset=n) for n, record in enumerate(records)]


def part(*, ready: bool = True, trouble: BaseException | None = None, probe_reason: str = "") -> Any:
    state = SimpleNamespace(ready=asyncio.Event(), trouble=trouble, probe_reason=probe_reason)
    if ready:
        state.ready.set()
    return SimpleNamespace(state=state, lookup=lambda users: [None for _ in users])


def service(producer: Producer | None = None, users: dict[int, Any] | None = None, over_kafka: Any = None) -> WorkerService:
    config, health = Settings(partitions=4), Health()
    owned = users if users is not None else {0: part()}
    recommend: Any = SimpleNamespace(partition_of=int, recent=Recent())
    items: Any = SimpleNamespace(row_of=lambda _: -1)
    absent: Any = None
    readiness = Readiness(config, owned, BrokerProbe(config), health)
    view = View(owned, items, absent, absent, absent, dict, health, readiness, absent, absent, absent)
    return WorkerService(
        config, recommend, absent, over_kafka, cast("HealingProducer", producer or Producer()), Metrics(), view
    )


async def test_events_go_to_the_partition_of_their_user_and_come_back_as_tokens() -> None:
    producer = Producer()
    events = [Interaction("a", "3", "i", 5, value=2.0), Interaction("b", "1", "i", 6)]
    assert await service(producer).send_events(events) == [{"partition": 3, "offset": 0}, {"partition": 1, "offset": 1}]
    assert [(r.topic, r.key, r.partition) for r in producer.records] == [
        ("riffle.interactions", b"3", 3),
        ("riffle.interactions", b"1", 1),
    ]
    assert decode("interaction", producer.records[0].value or b"")[0]["value"] == 2.0


async def test_an_erasure_is_an_empty_value_that_says_so() -> None:
    producer = Producer()
    assert await service(producer).erase("2") == {"partition": 2, "offset": 0}
    (record,) = producer.records
    assert (record.value, list(record.headers), record.partition) == (None, [ERASE], 2)


async def test_a_catalogue_entry_is_stored_and_deleted_under_its_id() -> None:
    producer = Producer()
    worker = service(producer)
    await worker.put_item(Item("x", "title", categories=("a",), attributes={"k": "v"}))
    await worker.delete_item("x")
    assert [(r.topic, r.key, r.partition) for r in producer.records] == [("riffle.items", b"x", None)] * 2
    datum = decode("item", producer.records[0].value or b"")[0]
    assert (datum["categories"], datum["attributes"]) == (["a"], {"k": "v"})
    assert producer.records[1].value is None


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (MessageSizeTooLargeError(), BadInput, "too_large"),
        (TopicAuthorizationFailedError(), NotReady, "broker_refuses"),
        (KafkaError(), NotReady, "broker_unavailable"),
    ],
)
async def test_refusals_of_the_broker_have_a_code_by_who_must_act(error: KafkaError, kind: type[Exception], code: str) -> None:
    with pytest.raises(kind) as found:
        await service(Producer(error)).delete_item("x")
    assert found.value.code == code  # type: ignore[attr-defined]


def test_a_broker_that_does_not_answer_is_given_up_in_time() -> None:
    async def scene(loop: VirtualLoop) -> float:
        with pytest.raises(NotReady):
            await service(Producer(silent=True)).delete_item("x")
        return loop.time() - 1_000.0

    assert run_virtually(scene) == pytest.approx(SEND_S)


async def test_who_is_not_known_is_not_found_and_who_is_restored_is_asked_for_again() -> None:
    worker = service(users={0: part(), 1: part(ready=False)})
    with pytest.raises(BadItem):
        await worker.user("0")
    with pytest.raises(NotReady):
        await worker.user("1")


async def test_users_are_listed_here_or_by_the_owner_of_their_partition() -> None:
    here = part()

    async def page(query: UserQuery) -> UserPage:
        return UserPage(0, 4, (query.after,), None)

    async def elsewhere(partition: int, query: UserQuery, within_s: float) -> UserPage:
        assert 0 < within_s <= LIST_MS / 1000
        return UserPage(partition, 4, ("from the owner", f"{partition}", query.after), None)

    here.page = page
    worker = service(users={0: here}, over_kafka=SimpleNamespace(users=elsewhere))
    assert (await worker.users(0, UserQuery("x"))).users == ("x",)
    assert (await worker.users(3, UserQuery("y"))).users == ("from the owner", "3", "y")
    for number in (-1, 4):
        with pytest.raises(BadRequest):
            await worker.users(number, UserQuery())


def readiness(users: dict[int, Any], *, broker: bool = True, caught_up: bool = True, **found: str) -> dict[str, object]:
    config, health = Settings(), Health()
    probe = BrokerProbe(config)
    probe.found = broker
    for name, text in found.items():
        health.warn(name, text)
    made = Readiness(config, users, probe, health)
    if caught_up:
        made.caught_up()
    ready, reasons = made.ready()
    assert ready == (not reasons)
    return reasons


def test_a_worker_is_ready_when_nothing_is_missing_and_each_reason_has_its_name() -> None:
    assert readiness({0: part(), 1: part()}) == {}
    assert readiness({0: part()}, registry="away") == {}, "it answers all the same"
    assert readiness({}).keys() == {"partitions"}
    assert readiness({0: part(), 2: part(ready=False)}) == {"restoring": [2]}
    assert readiness({0: part()}, broker=False).keys() == {"broker"}
    assert readiness({0: part()}, caught_up=False).keys() == {"catalogue"}
    assert readiness({0: part()}, reading="no", assignment="no").keys() == {"reading", "assignment"}
    assert readiness({0: part(trouble=NotReady("x", "why"))}) == {"troubles": {"0": "why"}}
    assert readiness({0: part(probe_reason="before")}) == {"troubles": {"0": "before"}}


def test_a_worker_that_was_ready_stays_so_while_it_takes_over_and_not_when_it_is_about_to_stop() -> None:
    users = {0: part()}
    config, health = Settings(), Health()
    made = Readiness(config, users, BrokerProbe(config), health)
    made.caught_up()
    assert made.ready() == (True, {})
    users[1] = part(ready=False)
    assert made.ready() == (True, {}), "else the loss of a worker would take out those that are left"
    made.leave()
    ready, reasons = made.ready()
    assert not ready
    assert reasons.keys() == {"stopping"}


async def test_records_on_wrong_partitions_are_reported_when_more_come() -> None:
    metrics, health = Metrics(), Health()
    look = Misplaced(Settings(), metrics, health).look
    await look()
    assert not health.current()
    metrics.wrong_partition.add(2, topic="interactions")
    await look()
    assert health.current().keys() == {"wrong partitions of interactions"}
    health.clear("wrong partitions of interactions")
    await look()
    assert not health.current(), "nothing new"
