"""Long steps are heard of without a terminal too, and not too often."""

from __future__ import annotations

import io
import itertools

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agents.cli.progress import EVERY_S, advance, step


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
