"""Repeated log records are written at intervals, with their count, and all others at once; and lines as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import unicodedata
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from streams.logs import MOST, Json, Masking, Seldom, request_facts

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


def _line(record: logging.LogRecord) -> dict[str, str]:
    text = Json().format(record)
    assert "\n" not in text
    return dict(json.loads(text))


def _record(message: str, *args: object, **more: object) -> logging.LogRecord:
    made = logging.getLogger("agents.x").makeRecord
    return made("agents.x", logging.WARNING, "f", 1, message, args, None, None, more or None)


@given(st.text())
def test_any_message_is_one_line_of_json(text: str) -> None:
    found = _line(_record("%s", text))
    assert set(found) == {"at", "level", "logger", "message"}
    assert (found["level"], found["logger"]) == ("WARNING", "agents.x")
    assert datetime.fromisoformat(found["at"]).tzinfo == UTC


def test_json_lines_are_masked_stack_traces_included() -> None:
    try:
        raise ValueError("redis://user:secret@host/0")
    except ValueError:
        record = logging.getLogger("x").makeRecord("x", logging.ERROR, "f", 1, "redis://user:secret@host/0", (), sys.exc_info())
    found = _line(record)
    assert "secret" not in json.dumps(found)
    assert found["error"].startswith("Traceback")
    assert "ValueError" in found["error"]


async def test_lines_name_the_request_and_its_trace() -> None:
    assert "request_id" not in _line(_record("x"))

    async def answers() -> dict[str, str]:
        request_facts.set({"request_id": "r1", "trace_id": "t1"})
        await asyncio.sleep(0)
        return _line(_record("x"))

    found, other = await asyncio.gather(answers(), asyncio.to_thread(_line, _record("x")))
    assert (found["request_id"], found["trace_id"]) == ("r1", "t1")
    assert "request_id" not in other
    assert _line(_record("x", request_id="r2"))["request_id"] == "r2"


@given(st.text(), st.sampled_from(["text", "json"]))
def test_no_line_commands_a_terminal(name: str, form: str) -> None:
    made = Json() if form == "json" else Masking("%(message)s")
    line = made.format(logging.LogRecord("agents.worker", logging.INFO, "a.py", 1, "user %s \x1b[31m\x9b", (name,), None))
    assert not [c for c in line if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    if form == "json":
        assert json.loads(line)["message"].startswith(f"user {name}")
    elif name.isprintable():
        assert line == f"user {name} \\u001b[31m\\u009b"
