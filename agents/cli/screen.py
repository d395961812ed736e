"""Terminal output of commands: plain text without markup, in tables that fit the screen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["on_one_line", "plain_console", "print_table", "printable", "words"]

WIDE = 10_000
"Columns without a terminal: nothing is folded in a file or a pipe."
NARROW = 4
"Minimum width at which a folded cell can be read."


def printable(text: str) -> str:
    """Escape a text for a terminal: letters, signs and line breaks are kept, anything else is escaped as in JSON."""
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def on_one_line(text: str) -> str:
    """Escape a text as `printable` does, and its line breaks: a name from outside must not look like a line of the output."""
    return printable(text).replace("\n", "\\n")


def plain_console(*, stderr: bool = False) -> Console:
    """A console that prints text unchanged: names from outside may look like markup, and numbers have no special colour."""
    stream = sys.stderr if stderr else sys.stdout
    screen = stream is not None and stream.isatty()
    width = None if screen or os.environ.get("COLUMNS", "").isdecimal() else WIDE
    return Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=width)


def words(value: object) -> str:
    """Format a JSON value: text unchanged, anything else in JSON's spelling."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def print_table(
    console: Console,
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    fold: Sequence[str] = (),
    right: Sequence[str] = (),
    lines: Sequence[str] = (),
    header: bool = True,
) -> None:
    """Print rows below their column names, without blanks at the ends of lines.

    Values keep their line breaks in the columns named in `lines` alone. Columns named in `fold` may take several lines. If the
    others do not fit on the screen, each row is printed as lines of `name: value` instead: no column is ever dropped or cut.
    """
    shown = [printable if name in lines else on_one_line for name in names]
    rows = [[show(value) for show, value in zip(shown, row, strict=True)] for row in rows]
    cells = {name: [*([name] if header else []), *(row[n] for row in rows)] for n, name in enumerate(names)}
    widest = {name: max(cell_len(line) for text in column for line in text.split("\n")) for name, column in cells.items()}
    needed = sum(min(width, NARROW) if name in fold else width for name, width in widest.items()) + 2 * len(names)
    if needed > console.width:
        for row in rows:
            for name, value in zip(names, row, strict=True):
                if value:
                    text = f"{name}: {value}" if name and header else value
                    console.print("\n".join(line.rstrip() for line in text.split("\n")), soft_wrap=True)
            console.print()
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=header)
    for name in names:
        table.add_column(Text(name), overflow="fold", no_wrap=name not in fold, justify="right" if name in right else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        console.file.write(f"{line.rstrip()}\n")
