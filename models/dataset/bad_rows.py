"""Report on a dataset folder: bad rows, which are skipped, and warnings, which are not about skipped rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["KEPT_ROWS", "BadRow", "Report", "place"]

KEPT_ROWS = 1_000
NAMED = 5
"Number of examples in a line that sums up many warnings."
MANY = {
    "image_missing": "{n} images are missing",
    "not_an_image": "{n} files are not readable images",
    "left_out": "{n} columns are left out",
    "unknown_column": "{n} columns are not read",
    "nested_value": "{n} values are not text, numbers, flags or lists of these",
    "repeated_event": "{n} events repeat an earlier one (same user, item, action and time, or event_id)",
    "january_1970": "{n} times most events lie in January 1970",
    "unclear_quote": "{n} rows run over lines that look like rows: is a quote not closed?",
    "unknown_key": "{n} keys are unknown",
    "repeated_user": "{n} users are named again",
}
"Summary line of several warnings, by code."


@dataclass(frozen=True, slots=True)
class BadRow:
    """A problem of a row. `row` is its line in the file, in Parquet its number from 1; 0 stands for the whole file."""

    file: str
    row: int
    field: str | None
    reason: str
    code: str = "invalid_row"
    about: str = ""
    "Name of the image, column or key, for summaries."


def place(row: BadRow) -> str:
    """Return the file and the line or row number, for messages."""
    if not row.row:
        return row.file
    return f"{row.file} {'row' if row.file.endswith('.parquet') else 'line'} {row.row}"


@dataclass(slots=True)
class Report:
    """Bad rows and warnings. Keeps the first 1,000 bad rows, and as many warnings of each kind; counts are exact."""

    bad: list[BadRow] = field(default_factory=list)
    warned: list[BadRow] = field(default_factory=list)
    _bad: Counter[tuple[str, str]] = field(default_factory=Counter)
    "Number of bad rows by file and code."
    _warned: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note(self, row: BadRow) -> None:
        """Count a bad row."""
        self._bad[row.file, row.code] += 1
        if len(self.bad) < KEPT_ROWS:
            self.bad.append(row)

    def warn(self, row: BadRow) -> None:
        """Count a warning, for which no row is skipped."""
        self._warned[row.file, row.code] += 1
        if self._warned[row.file, row.code] <= KEPT_ROWS:
            self.warned.append(row)

    def begin(self, file: Path) -> None:
        """Remove the findings of an earlier pass over the rows of this file."""
        self.bad = [bad for bad in self.bad if bad.file != file.name]
        gone = {(row.file, row.code) for row in self.warned if row.file == file.name and row.row}
        self.warned = [row for row in self.warned if (row.file, row.code) not in gone]
        for key in gone:
            del self._warned[key]
        for key in [key for key in self._bad if key[0] == file.name]:
            del self._bad[key]

    def begin_look(self, file: Path) -> None:
        """Remove the findings of an earlier check of the whole file."""
        gone = {(row.file, row.code) for row in self.warned if row.file == file.name and not row.row}
        self.warned = [row for row in self.warned if (row.file, row.code) not in gone]
        for key in gone:
            del self._warned[key]

    @property
    def bad_count(self) -> int:
        """Number of bad rows."""
        return self._bad.total()

    def bad_of(self, code: str) -> int:
        """Return the number of bad rows with this code."""
        return sum(n for key, n in self._bad.items() if key[1] == code)

    @property
    def warnings(self) -> Counter[str]:
        """Number of warnings by code."""
        counts = Counter[str]()
        for (_, code), n in self._warned.items():
            counts[code] += n
        return counts

    def warning_lines(self) -> list[str]:
        """Return one line for each file and code; a line for several warnings gives the first names."""
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
    """Join the hints of all reasons, which follow the first semicolon, without repetition."""
    hints = dict.fromkeys(hint for row in rows for hint in row.reason.split("; ")[1:])
    return "".join(f"; {hint}" for hint in hints)
