"""What a pass over a dataset folder found: bad rows, and what costs no row."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["KEPT_ROWS", "BadRow", "Report", "place"]

KEPT_ROWS = 1_000
NAMED = 5
"What a line about many names of them."
MANY = {
    "image_missing": "{n} images are not there",
    "not_an_image": "{n} images cannot be read as such",
    "left_out": "{n} columns are left out",
    "unknown_column": "{n} columns are not read",
    "nested_value": "{n} values are no text, number, flag or list of these",
    "repeated_event": "{n} events repeat an earlier one (same person, item, action and time, or event_id)",
    "january_1970": "{n} times most events lie in January 1970",
    "unclear_quote": "{n} rows run over lines that look like rows: is a quote not closed?",
    "unknown_key": "{n} keys are not known",
}
"By code, how several warnings are one line."


@dataclass(frozen=True, slots=True)
class BadRow:
    """What is wrong with a row. `row` is the line of the file, in Parquet the row's number from 1; 0 is the whole file."""

    file: str
    row: int
    field: str | None
    reason: str
    code: str = "invalid_row"
    about: str = ""
    "The name that a summary gives: of an image, a column or a key."


def place(row: BadRow) -> str:
    """Where it is, in words."""
    if not row.row:
        return row.file
    return f"{row.file} {'row' if row.file.endswith('.parquet') else 'line'} {row.row}"


@dataclass(slots=True)
class Report:
    """Bad rows and warnings, the first 1,000 of each kind; their counts are exact."""

    bad: list[BadRow] = field(default_factory=list)
    warned: list[BadRow] = field(default_factory=list)
    _bad: Counter[tuple[str, str]] = field(default_factory=Counter)
    "By file and code."
    _warned: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note(self, row: BadRow) -> None:
        """Count a bad row."""
        self._bad[row.file, row.code] += 1
        if len(self.bad) < KEPT_ROWS:
            self.bad.append(row)

    def warn(self, row: BadRow) -> None:
        """Count what costs no row."""
        self._warned[row.file, row.code] += 1
        if self._warned[row.file, row.code] <= KEPT_ROWS:
            self.warned.append(row)

    def begin(self, file: Path) -> None:
        """Forget what an earlier pass over the rows of this file found."""
        self.bad = [bad for bad in self.bad if bad.file != file.name]
        gone = {(row.file, row.code) for row in self.warned if row.file == file.name and row.row}
        self.warned = [row for row in self.warned if (row.file, row.code) not in gone]
        for key in gone:
            del self._warned[key]
        for key in [key for key in self._bad if key[0] == file.name]:
            del self._bad[key]

    def begin_look(self, file: Path) -> None:
        """Forget what an earlier look at the whole file found."""
        gone = {(row.file, row.code) for row in self.warned if row.file == file.name and not row.row}
        self.warned = [row for row in self.warned if (row.file, row.code) not in gone]
        for key in gone:
            del self._warned[key]

    @property
    def bad_count(self) -> int:
        """Bad rows."""
        return self._bad.total()

    def bad_of(self, code: str) -> int:
        """Bad rows of this kind."""
        return sum(n for key, n in self._bad.items() if key[1] == code)

    @property
    def warnings(self) -> Counter[str]:
        """How many of each code."""
        counts = Counter[str]()
        for (_, code), n in self._warned.items():
            counts[code] += n
        return counts

    def warning_lines(self) -> list[str]:
        """One line for each file and code, with the first names of many."""
        lines = []
        for (file, code), n in self._warned.items():
            mine = [row for row in self.warned if (row.file, row.code) == (file, code)]
            if n == 1:
                lines.append(f"{place(mine[0])}: {mine[0].reason}")
                continue
            names = list(dict.fromkeys(_name(row) for row in mine))
            more = ", …" if n > NAMED else ""
            lines.append(f"{file}: {MANY[code].format(n=f'{n:,}')}: {', '.join(names[:NAMED])}{more}{_hint(mine)}")
        return lines


def _name(row: BadRow) -> str:
    where = place(row).removeprefix(row.file).strip()
    return f"{row.about} ({where})" if row.about and where else row.about or where


def _hint(rows: list[BadRow]) -> str:
    """What the reasons say beyond the first clause, each once."""
    hints = dict.fromkeys(hint for row in rows for hint in row.reason.split("; ")[1:])
    return "".join(f"; {hint}" for hint in hints)
