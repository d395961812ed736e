"""Repeated log records are written at intervals, with their count; all others are written."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from streams.logs import MOST, Seldom

MESSAGES = st.lists(
    st.tuples(st.floats(0, 5), st.integers(0, 3), st.sampled_from([logging.INFO, logging.WARNING])), max_size=60
)


def record(line: int, level: int, name: str = "aiokafka.client") -> logging.LogRecord:
    return logging.LogRecord(name, level, "client.py", 1, "node %s: %s, errno %d", ("abcd"[line], "refused", line), None)


@given(MESSAGES)
def test_every_repetition_is_written_or_counted(messages: list[tuple[float, int, int]]) -> None:
    now = 0.0
    seldom = Seldom("aiokafka", 10.0, lambda: now)
    last: dict[int, float] = {}
    told = dict.fromkeys(range(4), 0)
    sent = dict.fromkeys(range(4), 0)
    for after, line, level in messages:
        now += after
        one = record(line, level)
        written = seldom.filter(one)
        if level < logging.WARNING:
            assert written
            continue
        assert written == (line not in last or now - last[line] >= 10.0)
        sent[line] += 1
        if written:
            last[line] = now
            text = one.getMessage()
            told[line] += 1 + (int(text.split("(")[1].split()[0]) if "more like it" in text else 0)
            assert told[line] == sent[line]
            assert text.startswith(f"node {'abcd'[line]}: refused")


def test_other_loggers_are_left_alone() -> None:
    seldom = Seldom("aiokafka", 10.0, lambda: 0.0)
    assert all(seldom.filter(record(1, logging.ERROR, "agents.wiring")) for _ in range(3))
    assert [seldom.filter(record(1, logging.ERROR)) for _ in range(3)] == [True, False, False]


def test_what_is_remembered_is_bounded() -> None:
    seldom = Seldom("aiokafka", 10.0, lambda: 0.0)
    for n in range(3 * MOST):
        name = "".join("abcdefghij"[int(digit)] for digit in str(n))
        assert seldom.filter(logging.LogRecord("aiokafka", logging.ERROR, "client.py", 1, name, (), None))
    assert len(seldom._written) <= MOST


def test_messages_that_differ_in_more_than_numbers_are_all_written() -> None:
    seldom = Seldom("aiokafka", 10.0, lambda: 0.0)
    texts = ("node 1: refused", "node 2: expired", "node 3: refused", "node 1: refused")
    made = [logging.LogRecord("aiokafka", logging.ERROR, "client.py", 1, text, (), None) for text in texts]
    assert [seldom.filter(one) for one in made] == [True, True, False, False]


def test_a_call_that_does_not_format_is_left_to_the_handler() -> None:
    broken = logging.LogRecord("aiokafka", logging.ERROR, "client.py", 1, "%d", ("text",), None)
    assert Seldom("aiokafka").filter(broken)
