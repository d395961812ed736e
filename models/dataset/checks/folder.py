"""All checks of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.dataset.checks.check import Check, State, good, warning
from models.dataset.checks.events import event_checks
from models.dataset.checks.facts import gathered
from models.dataset.checks.rows import item_checks
from models.dataset.folder import Dataset
from schemas.errors import BadDataset

__all__ = ["MOST_ROWS", "Checked", "checked"]

MOST_ROWS = 200_000
"Number of rows of items, and of events, that are read. The other checks hold for these rows only."
PLACES = {"no_column": "columns", "bad_rule": "likes", "seconds": "times"}
"Check to which a refusal of the folder belongs, by its code."
ADVICE = {
    "no_folder": "name the folder that holds the files",
    "no_file": "name the files items.csv and events.csv, or .parquet or .jsonl",
    "two_files": "keep one of them",
    "bad_toml": "correct dataset.toml, or remove it",
    "empty": "write at least one row below the header",
    "no_column": "rename a column, or add this one",
    "bad_rule": "write a rule such as action == 'like' or value >= 4 into dataset.toml",
    "seconds": "multiply the times by 1,000, or write ISO 8601",
}
"How to mend a refusal, by its code."


@dataclass(frozen=True, slots=True)
class Checked:
    """All checks of a folder. After a file that cannot be used later checks are missing."""

    name: str
    checks: Sequence[Check]
    items: int = 0
    events: int = 0
    cut: frozenset[str] = frozenset()
    "Names of files of which only the first rows were read."

    @property
    def passes(self) -> bool:
        """Whether no check fails."""
        return all(check.state is not State.FAIL for check in self.checks)


def checked(folder: Path, now_ms: int, *, events: bool = True, most_rows: int = MOST_ROWS) -> Checked:
    """Check a folder. Without `events` only its items are checked. Nothing is written."""
    try:
        dataset = Dataset.open(folder, events=events)
    except BadDataset as exc:
        return Checked(folder.name, [_failed("files", exc)])
    dataset.most_rows = most_rows
    checks = [_files(dataset, events=events)]
    try:
        dataset.check(events=events)
        facts = gathered(dataset, now_ms, events=events)
    except BadDataset as exc:
        failed = _failed(PLACES.get(exc.code, "files"), exc)
        return Checked(dataset.name, [*(check for check in checks if check.name != failed.name), failed])
    checks += item_checks(dataset, facts)
    if events:
        checks += event_checks(dataset, facts)
    return Checked(dataset.name, checks, facts.items, facts.all_events, facts.cut)


def _files(dataset: Dataset, *, events: bool) -> Check:
    if lines := dataset.report.warning_lines():
        return warning("files", "; ".join(lines), "correct or remove these keys")
    return good("files", "items and events are there" if events else "items are there")


def _failed(name: str, exc: BadDataset) -> Check:
    advice = ADVICE.get(exc.code, "write the file anew: as Parquet, CSV in UTF-8, or JSON lines")
    return Check(name, State.FAIL, exc.message, advice)
