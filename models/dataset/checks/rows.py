"""Checks of rows and of items."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from models.dataset.bad_rows import BadRow
from models.dataset.checks.check import NAMED, Check, State, examples, good, warning
from models.dataset.checks.facts import LARGEST_IMAGE, Facts
from models.dataset.folder import Dataset

__all__ = ["by_kind", "item_checks"]

MANY = 0.5
"Share of items without content from which it is a warning."
LIMITS = ("must have 1 to", "at most", "longer than", "bytes")
"Parts of the reasons of rows that exceed a limit."


def item_checks(dataset: Dataset, facts: Facts) -> Iterator[Check]:
    """Check columns, rows, sizes, repetitions, content and images."""
    kinds = by_kind(facts.bad)
    lines = [line for line in dataset.report.warning_lines() if "column" in line]
    if lines:
        yield warning("columns", "; ".join(lines), "rename columns that should be read: the interface's tables list all names")
    else:
        yield good("columns", "all columns are read")
    yield _rows(dataset, facts, kinds["rows"])
    yield _sizes(facts, kinds["sizes"])
    yield _duplicates(dataset, kinds["duplicates"])
    yield _content(facts)
    yield _images(dataset, facts)


def by_kind(bad: Iterable[BadRow]) -> dict[str, list[BadRow]]:
    """Return bad rows by what is wrong: `rows`, `sizes`, `times` or `duplicates`."""
    found: dict[str, list[BadRow]] = {"rows": [], "sizes": [], "times": [], "duplicates": []}
    for row in bad:
        if row.field == "event_time" or row.code == "future_event_time":
            found["times"].append(row)
        elif row.code == "repeated_item":
            found["duplicates"].append(row)
        elif row.code == "too_large" or any(part in row.reason for part in LIMITS):
            found["sizes"].append(row)
        else:
            found["rows"].append(row)
    return found


def _rows(dataset: Dataset, facts: Facts, bad: Sequence[BadRow]) -> Check:
    if dataset.torn:
        said = f"a quote is not closed: {examples(bad)}"
        return Check("rows", State.FAIL, said, "close the quote; within a quoted field write a quote twice")
    if not facts.items or not (facts.all_events or not facts.has_events):
        what = "event" if facts.items else "item"
        return Check("rows", State.FAIL, f"no {what} can be used: {examples(facts.bad)}", "correct these fields")
    if not bad:
        return good("rows", f"{facts.items:,} items and {facts.all_events:,} events can be read")
    more = " or more" if len(facts.bad) < facts.bad_count else ""
    return warning(
        "rows", f"{len(bad):,}{more} rows are skipped: {examples(bad)}", "correct these fields, or load without them"
    )


def _sizes(facts: Facts, bad: Sequence[BadRow]) -> Check:
    large = facts.large_images
    if not bad and not large:
        return good("sizes", "ids, texts and images are within the limits")
    said = [f"{len(bad):,} rows exceed a limit, and are skipped: {examples(bad)}"] if bad else []
    if large:
        said.append(
            f"{len(large):,} images have more than {LARGEST_IMAGE >> 20} MiB, and are not used: {', '.join(large[:NAMED])}"
        )
    return warning("sizes", "; ".join(said), "shorten these fields, and scale these images down")


def _duplicates(dataset: Dataset, items: Sequence[BadRow]) -> Check:
    events = dataset.warnings["repeated_event"]
    if not items and not events:
        return good("duplicates", "no item and no event is repeated")
    said = [f"{len(items):,} items are repeated: {examples(items)}"] if items else []
    if events:
        said.append(f"{events:,} events repeat an earlier one (same user, item, action and time, or event_id)")
    advice = "nothing, if they are mistakes: the first one counts; where several events are meant, give each its own event_id"
    return warning("duplicates", "; ".join(said), advice)


def _content(facts: Facts) -> Check:
    said = f"{facts.described:,} of {facts.items:,} items have a title, text or categories"
    if facts.items - facts.described <= MANY * facts.items:
        return good("content", said)
    return warning("content", said, "add them: items without events are found by their content")


def _images(dataset: Dataset, facts: Facts) -> Check:
    if dataset.warnings["image_missing"] or dataset.warnings["not_an_image"]:
        lines = [line for line in dataset.report.warning_lines() if "image" in line]
        return warning("images", "; ".join(lines), "put the files at these paths below the folder")
    said = f"{facts.pictured:,} of {facts.items:,} items have an image" if facts.pictured else "no item names an image"
    return good("images", said)
