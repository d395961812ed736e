"""A CSV reader (RFC 4180) that loses no rows: every line belongs to one row, and each row is returned or reported.

Python's `csv` accepts malformed text: it drops quotes within a field, and a quote that is never closed swallows the following
rows. Here quotes within an unquoted field are kept, and a malformed quoted field costs one line: reading continues with the
next.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TextIO

from models.dataset.text import escaped, is_utf8
from schemas.errors import BadDataset
from schemas.parsing import shown

__all__ = ["MOST_CHARS", "OPEN_QUOTE", "Bad", "CsvRows", "header"]

MOST_CHARS = 1 << 24
"Maximum length of a row that runs over several lines, in characters."
OPEN_QUOTE = "open_quote"
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}
QUOTED = re.compile(r'"((?:[^"]++|"")*+)"')
CLOSES = re.compile(r'(?<!")"(?:"")*+(?!")')
"An odd number of quotes: the first such run ends a quoted field."

Doubt = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that cannot be split, and the reason. After the code `OPEN_QUOTE` the boundaries of later rows are a guess."""

    code: str
    reason: str


@dataclass(slots=True)
class _Split:
    """A partly split row: its fields, the start of a quoted field that is still open, and the error if there is one."""

    cells: list[str] = field(default_factory=list)
    open_at: int = -1
    "Index of the quote that opened the field; -1 if no field is open."
    wrong: str = ""
    bare: bool = False
    "Whether an unquoted field contains a quote."

    def go_on(self, text: str) -> None:
        """Split `text`, which continues the row at the start of a field, up to its end."""
        at, self.open_at = 0, -1
        while True:
            if text.startswith('"', at):
                quoted = QUOTED.match(text, at)
                if quoted is None:
                    self.open_at = at
                    return
                after = text[quoted.end() : quoted.end() + 99]
                if after and not after.startswith(","):
                    self.wrong = (
                        f"text follows the closing quote of field {len(self.cells) + 1}: {escaped(after)}; "
                        'write a quote within a quoted field twice ("")'
                    )
                    return
                self.cells.append(quoted[1].replace('""', '"'))
                at = quoted.end()
            else:
                end = text.find(",", at)
                cell = text[at:] if end < 0 else text[at:end]
                if '"' in cell:
                    self.bare = True
                    if cell.lstrip().startswith('"'):
                        self.wrong = (
                            f"a blank stands before the quote of field {len(self.cells) + 1}: {escaped(cell)}; remove it"
                        )
                        return
                self.cells.append(cell)
                at += len(cell)
            if at >= len(text):
                return
            at += 1


class CsvRows:
    """Iterator over the rows below the header, each with the line where it begins. Empty lines are skipped.

    If rows begin in lines 3 and 6, the first has the lines 3 to 5, including blank ones.
    """

    def __init__(self, lines: TextIO, doubt: Doubt | None = None) -> None:
        """Read the header. `doubt` is called with the line of a row that is well-formed but probably a mistake, and the reason.

        Raises:
            BadDataset: the header is malformed, or names a column twice.
        """
        self._lines = iter(lines)
        self._back: list[str] = []
        "Lines to read again, the next one last."
        self._line = 0
        "Number of the newest line that was read."
        self._torn = 0, 0
        "(line whose quote was never closed, last line that was searched for the closing quote)"
        self._doubt = doubt
        self.names = self._header()

    def __iter__(self) -> Iterator[tuple[int, list[str] | Bad]]:
        """Yield (line, fields in the order of the header, or the error)."""
        width = len(self.names)
        while (line := self._next()) is not None:
            text = line.rstrip("\r\n")
            if not text:
                continue
            at = self._line
            if '"' in text:
                row = self._quoted(line, width)
            else:
                cells = text.split(",")
                row = cells if len(cells) == width else self._miscounted(text, len(cells))
            if isinstance(row, list) and not (text.isascii() and at == self._line) and not is_utf8("".join(row)):
                row = self._not_utf8(row)
            yield at, row

    def _next(self) -> str | None:
        line = self._back.pop() if self._back else next(self._lines, None)
        self._line += line is not None
        return line

    def _header(self) -> list[str]:
        while (line := self._next()) is not None:
            if not line.rstrip("\r\n"):
                continue
            at = self._line
            split, _ = self._split(line)
            names = [name.strip() for name in split.cells]
            if split.wrong or split.open_at >= 0:
                raise BadDataset("bad_header", f"the header in line {at}: {split.wrong or 'a quote is never closed'}")
            if not is_utf8("".join(names)):
                raise BadDataset("bad_header", f"the header {escaped(line.strip())} is not UTF-8: save the file as UTF-8")
            twice = [name for name in names if name and names.count(name) > 1]
            if twice:
                raise BadDataset(
                    "repeated_column", f"the header names {shown(twice[0])} twice: name each column once", twice[0]
                )
            return names
        return []

    def _split(self, first: str) -> tuple[_Split, list[str]]:
        """Split a row that begins with line `first`; returns also the further lines that were read for it."""
        row, held, taken, size = _Split(), first, list[str](), len(first)
        while True:
            row.go_on(held.rstrip("\r\n"))
            if row.wrong or row.open_at < 0:
                return row, taken
            parts = [held[row.open_at :]]
            while True:
                line = self._next() if size <= MOST_CHARS else None
                if line is None:
                    return row, taken
                taken.append(line)
                parts.append(line)
                size += len(line)
                if CLOSES.search(line):
                    break
            held = "".join(parts)

    def _quoted(self, line: str, width: int) -> list[str] | Bad:
        at = self._line
        row, taken = self._split(line)
        alike = bool(taken) and all(_is_row(other, width) for other in taken)
        if row.open_at >= 0 or (alike and not row.wrong and len(row.cells) != width):
            return self._torn_at(at, taken, f"a quote opened in line {at} is never closed")
        if row.wrong and taken:
            reason = f"a quote opened in line {at} is never closed; in line {at + len(taken)}, {row.wrong}"
            return self._torn_at(at, taken, reason)
        if row.wrong:
            return Bad("invalid_row", row.wrong)
        if len(row.cells) != width:
            return self._miscounted(line.rstrip("\r\n"), len(row.cells), at + len(taken) if taken else 0)
        torn, until = self._torn
        if row.bare and at <= until:
            return self._torn_at(at, taken, f"holds a quote, and a quote opened in line {torn} is never closed")
        if alike and self._doubt is not None and line.count(",") == width - 1:
            self._doubt(at, f"lines {at} to {at + len(taken)} are one row, but each looks like a row: is a quote not closed?")
        return row.cells

    def _torn_at(self, at: int, taken: Sequence[str], reason: str) -> Bad:
        """Report the line as bad, and queue the lines after it to be read again as separate rows."""
        self._torn = at, max(self._torn[1], at + len(taken))
        self._line -= len(taken)
        self._back += reversed(taken)
        return Bad(OPEN_QUOTE, reason)

    def _miscounted(self, text: str, n: int, until: int = 0) -> Bad:
        """Report a wrong number of fields, `n`. `until`: the last line of a row of several lines, else 0."""
        width = len(self.names)
        others = [what for mark, what in SEPARATORS.items() if n == 1 and text.count(mark) == width - 1 > 0]
        if until:
            cause = f"the row runs to line {until}: is a quote not closed?"
        elif others:
            cause = f"its fields seem to be separated by {others[0]}, not by commas"
        elif n < width:
            cause = "write what is missing as an empty field, or put a text with a line break in double quotes"
        else:
            cause = "put a text with a comma in double quotes"
        return Bad("invalid_row", f"{n} field{'s' * (n != 1)}, but the header has {width}: {escaped(text)}; {cause}")

    def _not_utf8(self, cells: Sequence[str]) -> Bad:
        name, cell = next((name, cell) for name, cell in zip(self.names, cells, strict=True) if not is_utf8(cell))
        return Bad("invalid_row", f"{name} is not UTF-8: {escaped(cell)}; is the file in Latin-1? save it as UTF-8")


def header(names: Sequence[str]) -> str:
    """Format the header for messages, with the separator that it probably uses instead of a comma."""
    found = ",".join(names)
    text = f"its header is {shown(found)}"
    for mark, what in SEPARATORS.items():
        if len(names) == 1 and mark in found:
            text += f", whose names seem to be separated by {what}: separate the fields of every line by commas"
    return text


def _is_row(line: str, width: int) -> bool:
    row = _Split()
    row.go_on(line.rstrip("\r\n"))
    return width > 1 and not row.wrong and row.open_at < 0 and len(row.cells) == width
