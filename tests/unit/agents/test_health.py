"""Findings and back-off, on a fake clock."""

from __future__ import annotations

import pytest
from aiokafka.errors import ProducerFenced, TopicAuthorizationFailedError
from hypothesis import given
from hypothesis import strategies as st

from agents.findings import Health, code_of, heals, why
from schemas.errors import ConfigError, NotReady, StoreCorrupt
from streams.back_off import BackOff


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_finding_stays_until_it_is_cleared_or_over() -> None:
    clock = Clock()
    health = Health(clock)
    health.warn("archive", "it stands still")
    health.warn("producer", "it was replaced", for_s=60)
    clock.now = 50
    health.warn("producer", "again", for_s=60)
    clock.now = 100
    assert health.current() == {"archive": "it stands still", "producer": "again"}
    clock.now = 111
    health.set("archive", "still")
    assert health.current() == {"archive": "still"}
    health.set("archive", "")
    assert health.current() == {}


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30))
def test_waits_double_up_to_the_most(gaps: list[float]) -> None:
    clock = Clock()
    back_off = BackOff(0.5, 30.0, clock)
    waits = []
    for gap in gaps:
        clock.now += gap
        waits.append(back_off.failed())
    assert waits == [min(0.5 * 2.0**n, 30.0) for n in range(len(gaps))]


def test_a_long_quiet_begins_anew() -> None:
    clock = Clock()
    back_off = BackOff(0.5, 30.0, clock)
    assert [back_off.failed() for _ in range(8)][-1] == 30.0
    clock.now = 121
    assert back_off.failed() == 0.5


@pytest.mark.parametrize(
    ("error", "mended", "code"),
    [
        (ProducerFenced(), True, "PRODUCER_FENCED"),
        (TopicAuthorizationFailedError("t"), True, "TOPIC_AUTHORIZATION_FAILED"),
        (StoreCorrupt("store_unreadable", "damaged"), True, "store_unreadable"),
        (NotReady("store_unavailable", "disk full"), True, "store_unavailable"),
        (ConfigError("invalid_setting", "x"), False, "invalid_setting"),
        (ValueError("a fault of this program"), False, "ValueError"),
    ],
)
def test_all_but_faults_of_this_program_heal(error: Exception, mended: bool, code: str) -> None:
    assert heals(error) is mended
    assert code_of(error) == code
    assert why(error)
