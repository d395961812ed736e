"""What is repeated is written now and then, and counted; everything else is written."""

from __future__ import annotations

import logging

from hypothesis import given
from hypothesis import strategies as st

from streams.logs import MOST, Seldom

MESSAGES = st.lists(
    st.tuples(st.floats(0, 5), st.integers(0, 3), st.sampled_from([logging.INFO, logging.WARNING])), max_size=60
)


def record(line: int, level: int, name: str = "aiokafka.client") -> logging.LogRecord:
    return logging.LogRecord(name, level, "client.py", line, "node %d: %s", (line, "refused"), None)


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
            assert text.startswith(f"node {line}: refused")


def test_other_loggers_are_left_alone() -> None:
    seldom = Seldom("aiokafka", 10.0, lambda: 0.0)
    assert all(seldom.filter(record(1, logging.ERROR, "agents.wiring")) for _ in range(3))
    assert [seldom.filter(record(1, logging.ERROR)) for _ in range(3)] == [True, False, False]


def test_what_is_remembered_is_bounded() -> None:
    seldom = Seldom("aiokafka", 10.0, lambda: 0.0)
    for line in range(3 * MOST):
        seldom.filter(record(line, logging.ERROR))
    assert len(seldom._written) <= MOST
