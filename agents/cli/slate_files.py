"""Files of slates. A file gets its name when it is complete, so that no reader meets half of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from schemas.errors import ConfigError, NotReady

__all__ = ["COLUMNS", "SUFFIXES", "check_writable", "slate_file"]

SUFFIXES = (".parquet", ".jsonl")
COLUMNS: dict[str, Any] = {
    "user_id": pl.String,
    "rank": pl.Int32,
    "item_id": pl.String,
    "score": pl.Float64,
    "request_id": pl.String,
    "release": pl.String,
    "degraded": pl.String,
    "as_of_partition": pl.Int32,
    "as_of_offset": pl.Int64,
    "as_of_event_time": pl.Int64,
}
"Columns of Parquet files, with one row for each item of a slate. `degraded` is separated by commas; times are epoch ms."
ROWS_IN_MEMORY = 200_000

Add = Callable[[Iterable[dict[str, Any]]], None]
"Writes slates, as JSON values."


def check_writable(path: Path) -> None:
    """Check that `slate_file` can create or replace `path`, by creating and removing a folder beside it.

    Raises:
        ConfigError: it cannot; the message names the reason.
    """
    if path.is_dir():
        raise ConfigError(
            "not_writable", f"{path} is a folder: name a file in it, such as {path / f'slates{path.suffix}'}", "out"
        )
    try:
        Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)).rmdir()
    except OSError as exc:
        raise ConfigError("not_writable", f"no file can be created in {path.parent}: {exc.strerror}", "out") from exc


@contextmanager
def slate_file(path: Path) -> Iterator[Add]:
    """Give a function that writes slates, and create or replace `path` when the block ends; an error leaves it as it was.

    `.jsonl`: a slate on each line, as it was answered. `.parquet`: see `COLUMNS`; a slate without items has no row.

    Raises:
        NotReady: the Parquet file cannot be written.
        OSError: a file cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        whole = folder / f"whole{path.suffix}"
        if path.suffix == ".jsonl":
            with whole.open("wb") as file:
                yield lambda slates: file.writelines(orjson.dumps(slate, option=orjson.OPT_APPEND_NEWLINE) for slate in slates)
        else:
            parts = _Parts(folder, path)
            yield parts.add
            parts.join(whole)
        whole.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Parts:
    """Rows of slates, in Parquet files of bounded size that are joined at the end."""

    def __init__(self, folder: Path, path: Path) -> None:
        self._folder, self._path = folder, path
        self._rows: list[tuple[Any, ...]] = []
        self._count = 0

    def add(self, slates: Iterable[dict[str, Any]]) -> None:
        for slate in slates:
            as_of = slate["as_of"] or {}
            end = (
                *(slate["request_id"], slate["release"], ",".join(slate["degraded"])),
                *(as_of.get(name) for name in ("partition", "offset", "event_time")),
            )
            self._rows += [
                (slate["user_id"], rank, item["item_id"], item["score"], *end) for rank, item in enumerate(slate["items"], 1)
            ]
        if len(self._rows) >= ROWS_IN_MEMORY:
            self._write()

    def join(self, whole: Path) -> None:
        """Write all rows to one file, in the order in which they were added."""
        if self._rows or not self._count:
            self._write()
        with self._writing():
            pl.scan_parquet(self._folder / "part*.parquet", glob=True).sink_parquet(whole, compression="zstd")

    def _write(self) -> None:
        frame = pl.DataFrame(self._rows, schema=COLUMNS, orient="row")
        with self._writing():
            frame.write_parquet(self._folder / f"part{self._count:08d}.parquet", compression="zstd")
        self._rows, self._count = [], self._count + 1

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as exc:
            raise NotReady("not_written", f"{self._path} cannot be written: {exc}") from exc
