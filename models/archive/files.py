"""Names of archive files, their rows, and reading them back.

`topic=<topic>/date=<UTC day of the first record>/<topic>-<partition>-<first offset>-<last offset>.parquet`

A row with `_removed` takes something away: an item from the catalogue, or all that a person did before. It names what, and
where it came from; its other columns are empty. Files written before there were such rows lack the column: they hold none.
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
"Topic, by short name, to the schema of its values."
ORIGIN: dict[str, Any] = {"_partition": pl.Int32, "_offset": pl.Int64, "_timestamp": pl.Int64}
REMOVED: dict[str, Any] = {"_removed": pl.Boolean}
NAMED = {"items": "item_id", "interactions": "user_id"}
"Topics whose rows may take something away, and the column that says what."
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
    """A file's identity. `first` and `last` bound the offsets that it answers for, undecodable records included."""

    topic: str
    date: str
    partition: int
    first: int
    last: int

    @classmethod
    def of(cls, topic: str, partition: int, first: int, last: int, timestamp_ms: int) -> ArchiveFile:
        """The file of this range, whose first record has this timestamp."""
        return cls(topic, datetime.fromtimestamp(timestamp_ms / 1000, UTC).strftime("%Y-%m-%d"), partition, first, last)

    @classmethod
    def parse(cls, path: str) -> ArchiveFile | None:
        """The identity in a path; None when it is no archive file."""
        found = NAME.fullmatch(path)
        return found and cls(found["t"], found["d"], int(found["p"]), int(found["f"]), int(found["l"]))

    @property
    def path(self) -> str:
        """Path below the target."""
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
    """Column names and types of a schema's fields."""
    return {field["name"]: _kind(field["type"]) for field in json.loads(schema_text(schema))["fields"]}


def columns(topic: str) -> dict[str, Any]:
    """Column names and types of a topic's files: the schema's fields, where the record came from, and whether it removes."""
    return record_columns(SCHEMAS[topic]) | ORIGIN | (REMOVED if topic in NAMED else {})


def parquet(topic: str, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """These rows as a Parquet file."""
    out = io.BytesIO()
    pl.DataFrame([dict(row) for row in rows], schema=columns(topic), orient="row").write_parquet(out, compression="zstd")
    return out.getvalue()


def files(target: Target, topic: str) -> list[ArchiveFile]:
    """The topic's files, by date, partition and range; anything else in the folder is left out."""
    return sorted(file for path in target.names(f"topic={topic}/") if (file := ArchiveFile.parse(path)) is not None)


def next_offsets(target: Target, topic: str) -> dict[int, int]:
    """Per partition, the offset after the highest that a file answers for."""
    found: dict[int, int] = {}
    for file in files(target, topic):
        found[file.partition] = max(found.get(file.partition, 0), file.last + 1)
    return found


@dataclass(frozen=True, slots=True)
class Piece:
    """The rows of a file that no other piece has: all, or those from an offset on where two writers covered the same range."""

    path: str
    partition: int
    first: int
    last: int
    "The rows lie in first..last; there need not be one at each offset."
    whole: bool


def pieces(target: Target, topic: str, partition: int | None = None) -> list[Piece]:
    """What the topic's files hold, or one partition's, by partition and offset; ranges of pieces do not overlap."""
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
    """Partitions of which there are files."""
    return sorted({file.partition for file in files(target, topic)})


def read_archive(target: Target, topic: str, partition: int | None = None) -> pl.LazyFrame:
    """A topic's records, or one partition's, each (partition, offset) once, however many files cover it.

    By partition and offset where ranges do not overlap. Rows with `_removed` are among them.
    """
    return read_pieces(target, topic, pieces(target, topic, partition))


def read_pieces(target: Target, topic: str, wanted: Sequence[Piece]) -> pl.LazyFrame:
    """The records of some of a topic's pieces: those of whole files in their order, then the others."""
    kinds = columns(topic)
    whole = [piece.path for piece in wanted if piece.whole]
    scans = [target.scan(whole, kinds)] if whole else []
    scans += [target.scan([each.path], kinds).filter(pl.col("_offset") >= each.first) for each in wanted if not each.whole]
    if not scans:
        return pl.LazyFrame(schema=kinds)
    found = pl.concat(scans)
    return found.with_columns(pl.col("_removed").fill_null(value=False)) if topic in NAMED else found
