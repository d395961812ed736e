"""Ctrl-C in `riffle load` and `riffle replay`: the command reports what was sent, and what a repetition does."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from agents.cli import loading
from agents.cli.interrupts import INTERRUPTED
from models.state.rows import HISTORY
from schemas.settings import Settings

EVENTS = 1_234
AGAIN = (
    "Run the command again to send all: a repeated event is not counted if it is among its user's last "
    f"{HISTORY} events, and training reads it once"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "items.csv").write_text("item_id\na\nb\n")
    rows = "".join(f"u{n},a,{1_700_000_000_000 + n}\n" for n in range(EVENTS))
    (tmp_path / "events.csv").write_text(f"user_id,item_id,event_time\n{rows}")
    return tmp_path


def interrupted(monkeypatch: pytest.MonkeyPatch, command: click.Command, folder: Path, items: int, events: int) -> Result:
    """Run a command that Ctrl-C interrupts after so many items, or else events, were sent."""

    def taking(most: int) -> Any:
        async def produce(_: Settings, records: Iterable[object], *__: object) -> dict[int, int]:
            taken = list(islice(records, most))
            if len(taken) == most:
                raise KeyboardInterrupt
            return {}

        return produce

    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(loading, "ensure_topics", nothing)
    monkeypatch.setattr(loading, "outcomes", nothing)
    monkeypatch.setattr(loading, "produce_items", taking(items))
    monkeypatch.setattr(loading, "produce_events", taking(events))
    environment = Settings(home=folder / "home").environment()
    return CliRunner().invoke(command, [str(folder)], env=environment, catch_exceptions=False)


@pytest.mark.parametrize(
    ("command", "items", "events", "said"),
    [
        (loading.load, 3, 1_200, f"up to 2 items and 1,200 events were sent. {AGAIN}"),
        (loading.load, 1, 1_200, f"up to 1 items were sent. {AGAIN}"),
        (loading.load, 0, 1_200, "nothing was sent"),
        (loading.replay, 3, 1_000, f"up to 1,000 events were sent. {AGAIN}"),
    ],
)
def test_an_interrupt_says_what_was_sent_and_what_a_repetition_does(
    monkeypatch: pytest.MonkeyPatch, folder: Path, command: click.Command, items: int, events: int, said: str
) -> None:
    done = interrupted(monkeypatch, command, folder, items, events)
    assert done.stderr.splitlines() == [f"riffle: interrupted; {said}"]
    assert done.exit_code == INTERRUPTED
