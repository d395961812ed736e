"""Files that name users: one id on a line, or a table with the column `user_id`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from models.dataset.bad_rows import BadRow, Report
from models.dataset.fields import typed
from models.dataset.row_parsing import Bad, Row, columns, header, readable, rows
from models.dataset.text import escaped, is_utf8, opened
from schemas.errors import BadDataset, BadInput
from schemas.parsing import shown
from schemas.validation import MAX_ID_BYTES

__all__ = ["user_ids"]

TABLES = frozenset({".parquet", ".csv", ".jsonl"})
"Suffixes of files with columns. Any other file has one id on each line."


def user_ids(path: Path, report: Report) -> Iterator[str]:
    """Yield the ids of users in a file, each once, in the order of the file.

    Bad rows are skipped and noted in `report`, and repeated ids are warnings, `repeated_user`. Empty lines are skipped.

    Raises:
        BadDataset: the file cannot be read, or has no column `user_id`.
    """
    if path.suffix in TABLES and "user_id" not in (there := columns(path)):
        raise BadDataset("no_column", f"{path.name} has no column user_id: {header(there)}", "user_id")
    seen = set[str]()
    for row, source in rows(path) if path.suffix in TABLES else _lines(path):
        try:
            user_id = _user_id(source)
        except BadInput as exc:
            report.note(BadRow(path.name, row, exc.field, exc.message, exc.code))
            continue
        if user_id in seen:
            name = shown(user_id)
            report.warn(BadRow(path.name, row, "user_id", f"user_id {name} was there before", "repeated_user", name))
            continue
        seen.add(user_id)
        yield user_id


def _lines(path: Path) -> Iterator[tuple[int, Row]]:
    with readable(path), opened(path) as lines:
        for number, line in enumerate(lines, 1):
            if not (text := line.rstrip("\r\n")):
                continue
            yield number, {"user_id": text} if is_utf8(text) else Bad("invalid_row", f"not UTF-8: {escaped(text)}")


def _user_id(source: Row) -> str:
    if isinstance(source, Bad):
        raise BadInput(source.code, source.reason)
    value = typed({"user_id": source.get("user_id")}).get("user_id")
    if value is None:
        raise BadInput("missing_field", "user_id is missing", "user_id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise BadInput("invalid_field", f"user_id must be text or a whole number, is {shown(value)}", "user_id")
    if len(value.encode("utf-8", "surrogatepass")) > MAX_ID_BYTES:
        raise BadInput("invalid_field", f"user_id must have at most {MAX_ID_BYTES} bytes, is {shown(value)}", "user_id")
    return value
