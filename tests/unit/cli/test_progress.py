"""Long steps report progress without a terminal, too, at intervals."""

from __future__ import annotations

import io
import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agents.cli.waiting import EVERY_S, advance, step


@given(st.lists(st.floats(0, 30), min_size=1, max_size=50))
def test_without_a_terminal_a_line_every_ten_seconds_says_how_far_it_is(pauses: list[float]) -> None:
    now, said = 0.0, []
    out = io.StringIO()
    with advance("events", 200, Console(file=out, force_terminal=False), lambda: now) as report:
        for done, pause in enumerate(pauses, 1):
            now += pause
            before = len(out.getvalue())
            report(done)
            if len(out.getvalue()) > before:
                said.append((now, done))
    lines = out.getvalue().splitlines()
    assert lines == [f"events: {done // 2} % of 200" for _, done in said]
    times = [0.0, *(at for at, _ in said)]
    assert all(later - earlier >= EVERY_S for earlier, later in itertools.pairwise(times))
    assert now - times[-1] < EVERY_S, "never silent for longer"


def test_on_a_terminal_a_bar_ends_full_though_bad_rows_were_left_out() -> None:
    out = io.StringIO()
    with advance("items", 7, Console(file=out, force_terminal=True, width=80)) as report:
        report(4)
    assert "4/4" in out.getvalue()


def test_what_is_waited_for_is_said_without_a_terminal() -> None:
    out = io.StringIO()
    with step(Console(file=out, force_terminal=False), "starting Kafka"):
        assert out.getvalue() == "starting Kafka …\n"


def test_training_says_how_far_it_is_without_a_terminal() -> None:
    from training.cli.progress import SAID_EVERY_S, Lines

    now, out = 0.0, io.StringIO()
    lines = Lines(Console(file=out, force_terminal=False), lambda: now)
    lines.look()
    lines.report("towers", 0, 50)
    for done in range(1, 50):
        now += SAID_EVERY_S / 4
        lines.report("towers", done, 50)
        lines.look()
    lines.report("ranker", 0, 1)
    assert out.getvalue().splitlines() == [f"towers: {2 * n} %" for n in range(4, 50, 4)], "what is quick has no line"


@given(st.lists(st.floats(0, 30), min_size=1, max_size=30), st.integers(1, 5_000))
def test_a_part_without_a_measure_says_how_long_it_takes(pauses: list[float], total: int) -> None:
    from training.cli.progress import SAID_EVERY_S, Lines

    now, out = 0.0, io.StringIO()
    lines = Lines(Console(file=out, force_terminal=False), lambda: now)
    lines.report("read", 0, total)
    due, said = [], 0.0
    for pause in pauses:
        now += pause
        if now - said >= SAID_EVERY_S:
            said = now
            due.append(f"read: {now:.0f} s so far")
        lines.look()
    assert out.getvalue().splitlines() == due


def test_without_a_terminal_lines_come_though_nothing_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.cli import progress as module

    monkeypatch.setattr(module, "LOOK_S", 0.001)
    ticks, written = itertools.count(0.0, module.SAID_EVERY_S), threading.Event()

    class Out(io.StringIO):
        def write(self, text: str) -> int:
            written.set()
            return super().write(text)

    out = Out()
    with module.progress(Console(file=out, force_terminal=False), lambda: next(ticks)) as report:
        report("read", 0, 1)
        written.clear()
        assert written.wait(30)
    assert all(line.startswith("read: ") and line.endswith(" s so far") for line in out.getvalue().splitlines())


def test_on_a_terminal_a_part_without_a_measure_shows_no_share_until_it_is_done() -> None:
    from training.cli.progress import progress

    out = io.StringIO()
    with progress(Console(file=out, force_terminal=True, width=100)) as report:
        report("read", 0, 1)
        report("towers", 0, 50)
        report("towers", 20, 50)
    text = out.getvalue()
    assert "0/1" not in text
    assert "0/50" not in text.replace("50/50", "")
    assert "50/50" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_of_processes_that_train_together_the_first_alone_says_how_far_it_is(
    terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training.cli.progress import progress
    from training.loop.group import Group

    said = []
    for rank in range(2):
        monkeypatch.setattr(Group, "current", classmethod(lambda cls, rank=rank: cls(rank, 2)))
        out = io.StringIO()
        with progress(Console(file=out, force_terminal=terminal), itertools.count(0.0, 11.0).__next__) as report:
            report("towers", 0, 50)
            report("towers", 50, 50)
        said.append(out.getvalue())
    assert "towers" in said[0]
    assert said[1] == ""
