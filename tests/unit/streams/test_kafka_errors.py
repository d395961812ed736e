"""Every Kafka error code has a row, the documentation shows the rows, and wrapped errors are recognised."""

from __future__ import annotations

from pathlib import Path

import aiokafka.errors
import pytest
from aiokafka.errors import KafkaError, for_code

from streams.kafka.error_codes import ACTIONS, CLIENT, CODES, Action, action_of, advice_of, named

PAGE = Path(__file__).parents[3] / "docs" / "kafka-errors.md"


def test_every_code_that_the_client_knows_has_a_row() -> None:
    assert set(aiokafka.errors.kafka_errors) - {0} == set(CODES)
    assert list(CODES) == [-1, *range(1, len(CODES))]


def test_the_page_shows_the_table() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    shown = [line for line in lines if line.startswith("| ") and not line.startswith(("| action", "| code", "| error"))]
    rows = [f"| {action.value} | {text} |" for action, text in ACTIONS.items()]
    rows += [f"| {code} | {row.name} | {row.action.value} | {row.advice} |" for code, row in CODES.items()]
    rows += [f"| {kind.__name__}: {row.name} | {row.action.value} | {row.advice} |" for kind, row in CLIENT.items()]
    assert shown == rows


def test_what_a_person_must_do_is_said_for_every_refusal() -> None:
    assert all(row.advice for row in [*CODES.values(), *CLIENT.values()] if row.action is Action.REFUSE)


@pytest.mark.parametrize("code", list(CODES))
def test_an_error_is_found_through_what_wraps_it(code: int) -> None:
    plain = for_code(code)()
    wrapped = KafkaError("Unexpected error during batch delivery")
    wrapped.__cause__ = plain
    quoted = KafkaError(repr(plain))
    for error in (plain, wrapped, quoted):
        assert named(error) is CODES[code]
        assert action_of(error) is CODES[code].action
        assert advice_of(error).startswith(CODES[code].name)


def test_a_code_that_nobody_knows_replaces_the_client() -> None:
    assert action_of(for_code(9_999)()) is Action.REPLACE
    assert action_of(KafkaError("no reason")) is Action.REPLACE


@pytest.mark.parametrize("error", [ValueError("x"), AssertionError(), KeyError("k")])
def test_what_is_no_error_of_kafka_ends_the_process(error: Exception) -> None:
    assert action_of(error) is Action.END
    assert type(error).__name__ in advice_of(error)


@pytest.mark.parametrize("error", [ConnectionResetError(), TimeoutError(), OSError(111, "refused")])
def test_the_network_is_tried_again(error: OSError) -> None:
    assert action_of(error) is Action.RETRY
