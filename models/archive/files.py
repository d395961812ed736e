"""Names and rows of archive files, and reading them back.

`topic=<topic>/date=<UTC day of the first record>/<topic>-<partition>-<first offset>-<last offset>.parquet`

A row with `_removed` deletes an item from the catalogue, or all earlier events of a user. It has the id and the record's
origin; its other columns are empty. Older files lack the column, and contain no such rows.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl

from models.archive.target import Target
from schemas.codec import schema_text

__all__ = [
    "ArchiveFile",
    "Piece",
    "columns",
    "files",
    "next_offsets",
    "parquet",
    "partitions",
    "pieces",
    "read_archive",
    "read_pieces",
    "record_columns",
]

SCHEMAS = {"interactions": "interaction", "impressions": "impression", "items": "item"}
"Schema of the values of each topic, by the topic's short name."
ORIGIN: dict[str, Any] = {"_partition": pl.Int32, "_offset": pl.Int64, "_timestamp": pl.Int64}
REMOVED: dict[str, Any] = {"_removed": pl.Boolean}
NAMED = {"items": "item_id", "interactions": "user_id"}
"Topics whose rows may delete something, and the column of the deleted id."
KINDS: dict[str, Any] = {
    "string": pl.String,
    "long": pl.Int64,
    "int": pl.Int32,
    "double": pl.Float64,
    "float": pl.Float32,
    "boolean": pl.Boolean,
}
NAME = re.compile(r"topic=(?P<t>[^/]+)/date=(?P<d>\d{4}-\d\d-\d\d)/(?P=t)-(?P<p>\d{5,})-(?P<f>\d{20})-(?P<l>\d{20})\.parquet")


@dataclass(frozen=True, slots=True, order=True)
class ArchiveFile:
    """A file's identity. `first` and `last` are the bounds of its offsets, including those of undecodable records."""

    topic: str
    date: str
    partition: int
    first: int
    last: int

    @classmethod
    def of(cls, topic: str, partition: int, first: int, last: int, timestamp_ms: int) -> ArchiveFile:
        """Return the identity of the file with these offsets, whose first record has this timestamp."""
        return cls(topic, datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%d"), partition, first, last)

    @classmethod
    def parse(cls, path: str) -> ArchiveFile | None:
        """Parse the identity from a path; None if it is not an archive file."""
        found = NAME.fullmatch(path)
        return found and cls(found["t"], found["d"], int(found["p"]), int(found["f"]), int(found["l"]))

    @property
    def path(self) -> str:
        """Path relative to the target."""
        name = f"{self.topic}-{self.partition:05d}-{self.first:020d}-{self.last:020d}.parquet"
        return f"topic={self.topic}/date={self.date}/{name}"


def _kind(avro: Any) -> Any:
    if isinstance(avro, list):
        return _kind(next(entry for entry in avro if entry != "null"))
    if isinstance(avro, Mapping):
        if avro["type"] == "array":
            return pl.List(_kind(avro["items"]))
        if avro["type"] == "map":
            return pl.List(pl.Struct({"key": pl.String, "value": _kind(avro["values"])}))
        if avro["type"] == "record":
            return pl.Struct({field["name"]: _kind(field["type"]) for field in avro["fields"]})
        return _kind(avro["type"])
    return KINDS[avro]


def record_columns(schema: str) -> dict[str, Any]:
    """Return the column names and types of a schema's fields."""
    return {field["name"]: _kind(field["type"]) for field in json.loads(schema_text(schema))["fields"]}


def columns(topic: str) -> dict[str, Any]:
    """Return the column names and types of a topic's files: the schema's fields, the record's origin, and `_removed`."""
    return record_columns(SCHEMAS[topic]) | ORIGIN | (REMOVED if topic in NAMED else {})


def parquet(topic: str, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Encode rows as a Parquet file."""
    out = io.BytesIO()
    pl.DataFrame([dict(row) for row in rows], schema=columns(topic), orient="row").write_parquet(out, compression="zstd")
    return out.getvalue()


def files(target: Target, topic: str) -> list[ArchiveFile]:
    """List the topic's files by date, partition and offsets; other files in the folder are ignored."""
    return sorted(file for path in target.names(f"topic={topic}/") if (file := ArchiveFile.parse(path)) is not None)


def next_offsets(target: Target, topic: str) -> dict[int, int]:
    """Return the offset after the highest archived one, by partition."""
    found: dict[int, int] = {}
    for file in files(target, topic):
        found[file.partition] = max(found.get(file.partition, 0), file.last + 1)
    return found


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of a file that are in no other piece: all, or those from an offset on, if the offsets of files overlap."""

    path: str
    partition: int
    first: int
    last: int
    "Bounds of the rows' offsets. Not every offset has a row."
    whole: bool


def pieces(target: Target, topic: str, partition: int | None = None) -> list[Piece]:
    """List the pieces of a topic or of one partition, by partition and offset; their offsets do not overlap."""
    found = []
    reached: dict[int, int] = {}
    mine = [file for file in files(target, topic) if partition in {None, file.partition}]
    for file in sorted(mine, key=lambda file: (file.partition, file.first, file.last, file.date)):
        after = reached.get(file.partition, -1)
        if file.last > after:
            first = max(file.first, after + 1)
            found.append(Piece(file.path, file.partition, first, file.last, whole=first == file.first))
        reached[file.partition] = max(after, file.last)
    return found


def partitions(target: Target, topic: str) -> list[int]:
    """List the partitions that have files."""
    return sorted({file.partition for file in files(target, topic)})


def read_archive(target: Target, topic: str, partition: int | None = None) -> pl.LazyFrame:
    """Read the records of a topic or of one partition; each (partition, offset) is read once, even if several files have it.

    If the offsets of files do not overlap, records are ordered by partition and offset. Rows with `_removed` are included.
    """
    return read_pieces(target, topic, pieces(target, topic, partition))


def read_pieces(target: Target, topic: str, wanted: Sequence[Piece]) -> pl.LazyFrame:
    """Read the records of some pieces of a topic: those of whole files in their order, then the others."""
    kinds = columns(topic)
    whole = [piece.path for piece in wanted if piece.whole]
    scans = [target.scan(whole, kinds)] if whole else []
    scans += [target.scan([each.path], kinds).filter(pl.col("_offset") >= each.first) for each in wanted if not each.whole]
    if not scans:
        return pl.LazyFrame(schema=kinds)
    found = pl.concat(scans)
    return found.with_columns(pl.col("_removed").fill_null(value=False)) if topic in NAMED else found
