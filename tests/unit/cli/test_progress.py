"""Long steps report progress without a terminal, too, at intervals."""

from __future__ import annotations

import io
import itertools

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
    from training.cli.progress import SAID_EVERY_S, progress

    now, out = 0.0, io.StringIO()
    with progress(Console(file=out, force_terminal=False), lambda: now) as report:
        report("towers", 0, 50)
        for done in range(1, 50):
            now += SAID_EVERY_S / 4
            report("towers", done, 50)
        report("ranker", 0, 1)
    assert out.getvalue().splitlines() == [f"towers: {2 * n} %" for n in range(4, 50, 4)], "what is quick has no line"


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
        with progress(Console(file=out, force_terminal=terminal), iter([0.0, 11.0, 22.0]).__next__) as report:
            report("towers", 0, 50)
            report("towers", 50, 50)
        said.append(out.getvalue())
    assert "towers" in said[0]
    assert said[1] == ""
