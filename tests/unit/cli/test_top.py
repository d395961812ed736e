"""`riffle top`: what it shows of a worker's answers, on a terminal and in a pipe."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agents.cli import top as top_module
from agents.cli.top import KEPT, Look, looks, top
from agents.cli.top_screen import COLUMNS, bars, line_of, screen_of
from schemas.errors import NotReady

HOSTILE = "\x1b[31m[bold]u\n1\t"
COLUMN_NAMES = ("at", "events", "requests", "degraded", "refused", "lag", "p50_ms", "p99_ms", "freshness_ms")


class Worker:
    """A worker that has taken `taken` samples and answers as the interface does."""

    def __init__(self, taken: int = 3) -> None:
        self.taken = taken
        self.away = False
        self.asked: list[str] = []

    def get(self, _web: str, path: str) -> Any:
        self.asked.append(path)
        if self.away:
            raise NotReady("no_answer", "http://127.0.0.1:1 does not answer")
        if path.startswith("/v1/live"):
            since = int(path.partition("=")[2])
            first = since if since <= self.taken else 0
            columns = {name: [float(n) for n in range(first, self.taken)] for name in COLUMN_NAMES}
            return {
                "worker": {
                    "address": "127.0.0.1:6066",
                    "uptime_s": 5.0,
                    "ready": True,
                    "reasons": {},
                    "warnings": {"archive": HOSTILE},
                    "release": "none",
                    "refused": {},
                    "items": 40,
                    "rules": 0,
                },
                "partitions": [
                    {
                        "partition": 0,
                        "role": "owner",
                        "owner": None,
                        "standbys": [],
                        "applied": 9,
                        "durable": 7,
                        "lag": {"requests": 1},
                    },
                    {"partition": 1, "role": "elsewhere", "owner": "other:1", "standbys": []},
                ],
                "totals": {
                    "requests": {"slate": 3.0},
                    "degraded": {},
                    "dead_letters": {"not_json": 2.0},
                    "dropped": {"seen": 4},
                },
                "samples": {"next": self.taken, "interval_s": 1.0, **columns},
            }
        if path == "/v1/pipeline":
            return {
                "stages": [{"name": "rank", "seconds": 0.5, "batches": 100.0}],
                "sources": [{"name": "popular", "retrieved": 7, "shown": 3}],
            }
        return {"requests": [{"at": 1_700_000_000_000, "user_id": HOSTILE, "k": 5, "ms": 12.5, "outcome": "slate"}]}


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    found = Worker()
    monkeypatch.setattr(top_module, "_asked", lambda _caller, web, path: found.get(web, path))
    return found


def test_each_look_asks_only_for_new_samples_and_a_new_worker_begins_anew() -> None:
    worker = Worker(3)
    found = looks("w", worker.get)
    assert next(found).samples["events"] == [0.0, 1.0, 2.0]
    worker.taken = 5
    assert next(found).samples["events"] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [path for path in worker.asked if "live" in path] == ["/v1/live?since=0", "/v1/live?since=3"]
    worker.taken = 2
    assert next(found).samples["events"] == [0.0, 1.0]
    worker.taken = 2 + 2 * KEPT
    assert len(next(found).samples["events"]) == KEPT


def test_in_a_pipe_there_are_lines_of_columns_or_of_json(worker: Worker) -> None:
    done = CliRunner().invoke(top, ["-n", "2", "--interval", "0.1"], catch_exceptions=False)
    names, *lines = [line.split("\t") for line in done.output.splitlines()]
    assert (tuple(names), len(lines)) == (COLUMNS, 2)
    assert dict(zip(names, lines[0], strict=True))["p99_ms"] == "2.0"
    assert [len(line) for line in lines] == [len(COLUMNS)] * 2
    done = CliRunner().invoke(top, ["--json"], catch_exceptions=False)
    (line,) = done.output.splitlines()
    look = json.loads(line)
    assert look["newest"] == dict.fromkeys(COLUMN_NAMES, 2.0)
    assert set(look) == {"worker", "partitions", "totals", "newest", "pipeline"}


def test_a_worker_that_is_away_is_an_error_in_a_pipe(worker: Worker) -> None:
    worker.away = True
    done = CliRunner().invoke(top, ["--json"])
    assert isinstance(done.exception, NotReady)


def drawn(look: Look | None, trouble: str = "") -> str:
    console = Console(file=io.StringIO(), width=100, markup=False, highlight=False, force_terminal=False)
    console.print(
        screen_of(look.to_json() if look else None, look.samples if look else {}, look.recent if look else [], trouble)
    )
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_screen_shows_the_worker_and_text_from_outside_as_text() -> None:
    text = drawn(next(looks("w", Worker().get)))
    for shown in (
        "127.0.0.1:6066",
        "ready",
        "events/s",
        "rank",
        "5",
        "popular",
        "other:1",
        "not_json",
        "archive",
        "seen",
        "slate",
    ):
        assert shown in text
    assert "\x1b[31m" not in text
    assert "\\u001b[31m[bold]u" in text
    assert max(map(len, text.splitlines())) <= 100
    assert drawn(None, "it does not answer").strip() == "it does not answer"


def test_without_any_sample_there_is_a_line_and_a_screen() -> None:
    look = next(looks("w", Worker(0).get))
    assert line_of(look.to_json()).split("\t")[3:] == [""] * 8
    assert "events/s" in drawn(look)


@given(st.lists(st.none() | st.floats(0, 1e9), max_size=80))
def test_a_curve_has_a_block_for_each_value_and_the_highest_is_full(values: list[float | None]) -> None:
    text = bars(values)
    assert len(text) == 40
    newest = values[-40:]
    known = [value for value in newest if value is not None]
    assert len(text.replace(" ", "")) == len(known)
    if known and max(known) > 0:
        assert "█" in text
