"""The outbox: in order, unknown topics delay no other record, and each record ends once; in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from aiokafka.errors import KafkaError, TopicAuthorizationFailedError
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import VirtualLoop, run_virtually

from agents.metrics import Metrics
from agents.requests.outbox import TOPIC_TRIES, TOPIC_WAIT_S, Outbox, Queued

KINDS = ("reply", "impression", "dead_letter")


class Broker:
    """A broker with some topics; others appear after `appears_s`, or never. Also acts as the producer."""

    def __init__(self, loop: VirtualLoop, *, appears_s: float = 1e9, refuses: frozenset[int] = frozenset()) -> None:
        self._loop, self._appears_s, self._refuses = loop, appears_s, refuses
        self.began = loop.time()
        self.sent: list[tuple[str, bytes | None]] = []
        self.followed: set[str] = set()
        self._sends = 0
        self.error: KafkaError = KafkaError()

    def knows(self, topic: str) -> bool:
        return topic != "new" or self._loop.time() - self.began > self._appears_s

    async def look_up(self, topic: str) -> bool:
        self.followed.add(topic)
        return self.knows(topic)

    async def forget(self, topic: str) -> None:
        self.followed.discard(topic)

    async def send(self, topic: str, value: bytes | None, key: bytes | None = None, headers: Any = ()) -> Any:
        return self.send_at_once(topic, value, key, headers)

    def send_at_once(self, topic: str, value: bytes | None, key: bytes | None = None, headers: Any = ()) -> Any:
        self._sends += 1
        if self._sends in self._refuses:
            raise self.error
        self.sent.append((topic, value))
        done = self._loop.create_future()
        self._loop.call_later(0.005, done.set_result, None)
        return done


async def sent_all(
    loop: VirtualLoop,
    given_records: list[tuple[str, str]],
    appears_s: float,
    refuses: frozenset[int],
    *,
    at_once: bool = False,
) -> tuple[Broker, Counter[int], Metrics, list[float]]:
    broker, metrics, took = Broker(loop, appears_s=appears_s, refuses=refuses), Metrics(), list[float]()
    ended = Counter[int]()
    outbox = Outbox(broker, metrics, took.append, loop.time, at_once=broker.send_at_once if at_once else None)
    for n, (topic, what) in enumerate(given_records):
        outbox.put(Queued(topic, None, str(n).encode(), (), what, lambda n=n: ended.update([n])))  # type: ignore[misc]
    running = loop.create_task(outbox.run())
    assert await outbox.drained(60.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return broker, ended, metrics, took


records = st.lists(st.tuples(st.sampled_from(["known", "new"]), st.sampled_from(KINDS)), max_size=30)


@settings(max_examples=60, deadline=None)
@given(records, st.sampled_from([0.1, 1.0, 1e9]), st.frozensets(st.integers(1, 20), max_size=4), st.booleans())
def test_each_record_ends_once_and_what_is_not_sent_is_counted(
    given_records: list[tuple[str, str]], appears_s: float, refuses: frozenset[int], at_once: bool
) -> None:
    broker, ended, metrics, took = run_virtually(
        lambda loop: sent_all(loop, given_records, appears_s, refuses, at_once=at_once)
    )
    assert ended == Counter(range(len(given_records)))
    failed = sum(metrics.sends_failed.value(what=what, reason=reason) for what in KINDS for reason in ("refused", "no_topic"))
    assert failed + len(broker.sent) == len(given_records)
    assert len(took) <= sum(topic == "known" for topic, _ in given_records)
    order = [int(value or b"") for topic, value in broker.sent if topic == "known"]
    assert order == sorted(order)


def test_a_record_to_a_known_topic_does_not_wait_for_the_next_turn_of_the_loop() -> None:
    async def scene(loop: VirtualLoop) -> list[tuple[str, bytes | None]]:
        broker = Broker(loop)
        outbox = Outbox(broker, Metrics(), clock=loop.time, at_once=broker.send_at_once)
        outbox.put(Queued("known", None, b"0", (), "reply"))
        return broker.sent

    assert run_virtually(scene) == [("known", b"0")]


def test_a_topic_that_never_appears_is_given_up_and_its_name_forgotten() -> None:
    async def scene(loop: VirtualLoop) -> tuple[Broker, Metrics, float]:
        broker, _, metrics, _ = await sent_all(loop, [("new", "reply")], 1e9, frozenset())
        return broker, metrics, loop.time() - broker.began

    broker, metrics, seconds = run_virtually(scene)
    assert metrics.sends_failed.value(what="reply", reason="no_topic") == 1
    assert not broker.followed
    assert seconds <= TOPIC_TRIES * TOPIC_WAIT_S + 0.1


def test_a_refused_record_is_named_with_what_an_operator_can_do(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(loop: VirtualLoop) -> None:
        broker = Broker(loop, refuses=frozenset({1}))
        broker.error = TopicAuthorizationFailedError("replies")
        outbox = Outbox(broker, Metrics(), clock=loop.time)
        outbox.put(Queued("replies", None, b"", (), "reply", lambda: None))
        running = loop.create_task(outbox.run())
        assert await outbox.drained(1.0)
        running.cancel()

    run_virtually(scene)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("reply to replies failed: TOPIC_AUTHORIZATION_FAILED: grant this client's principal")
