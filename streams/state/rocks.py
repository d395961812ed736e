"""One partition's rows on disk, in a RocksDB folder. Every write stores the log position that it includes."""

from __future__ import annotations

import logging
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rocksdict import BlockBasedOptions, Cache, Options, Rdict, WriteBatch, WriteOptions

from schemas.errors import NotReady, RiffleError, StoreCorrupt
from streams.kafka.metadata import NO_ID
from streams.state.digests import Digest, digest

__all__ = ["PartitionStore", "block_cache"]

log = logging.getLogger(__name__)

FORMAT = 3
"""Format of the position's record. Format 2 had no id. Format 1 had no time either, and its folders had a log that every write
touched."""
DAMAGE = ("Corruption", "Invalid argument", "IO error: No such file")
"Prefixes of RocksDB's messages about damaged or missing files."
DAMAGED = "DAMAGED"
"Name of the marker file in a folder that must be rebuilt."
POSITION = b"\x00position"
POSITION_LAYOUT = struct.Struct("<Bqq16s")
"Format, position, epoch ms of the write, id of the changelog's topic (zeros: unknown)."
POSITION_2 = struct.Struct("<Bqq")
POSITION_1 = struct.Struct("<Bq")
ABOUT_ROWS = b"\x00"
"First byte of the keys of rows that describe the others, such as how far these include their source."
MAX_BATCH_BYTES = 1 << 20
"Bytes of values in one batch of a write."


def block_cache(megabytes: int) -> Cache:
    """A block cache to be shared by all stores of a process."""
    return Cache(megabytes << 20)


class PartitionStore:
    """Rows of one table partition.

    `position` is the changelog offset up to which the rows are complete (-1: nothing yet). It is stored with the last of the
    rows, so after a crash every row that it includes is present. The changelog is the only log: rows that were not yet in a
    file when the process died are replayed from it.
    """

    def __init__(self, folder: Path, cache: Cache, clock: Callable[[], float] = time.time) -> None:
        self.folder = folder
        self._clock = clock
        self._opened_ms = self._written_ms = self._touched_ms = 0
        self._cache = cache
        self._db: Rdict | None = None
        self._reading, self._closing = threading.Lock(), threading.Event()
        self._unlogged = WriteOptions()
        self._unlogged.disable_wal = True
        self._writing = threading.Lock()
        "Held from the first batch of a write to the last, so that no snapshot contains a part of it."
        self.position = -1
        self.log_id = NO_ID
        "Id of the topic that `position` is an offset of. The caller of `write` sets it."
        self.damaged = False
        "Whether a damaged block was found since the folder was opened. Only a rebuild repairs it."

    def open(self) -> None:
        """Open or create the folder.

        Raises:
            StoreCorrupt: RocksDB cannot read it, or it has another format. `wipe` and a replay rebuild it.
        """
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_max_open_files(64)
        options.set_write_buffer_size(8 << 20)
        options.set_max_write_buffer_number(2)
        options.set_paranoid_checks(True)
        table = BlockBasedOptions()
        table.set_block_cache(self._cache)
        table.set_bloom_filter(10, False)
        options.set_block_based_table_factory(table)
        if (self.folder / DAMAGED).exists():
            raise StoreCorrupt("store_unreadable", f"{self.folder}: a damaged block was found earlier")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._opened_ms = self._now_ms()
        self._touched_ms = max((round(path.stat().st_mtime * 1000) for path in self.folder.glob("*")), default=self._opened_ms)
        try:
            self._db = Rdict(str(self.folder), options)
            stored = self._db.get(POSITION)
        except Exception as exc:
            raise self._fault(exc) from exc
        found = (-1, self._now_ms(), NO_ID) if stored is None else self._stored(stored)
        self.position, self._written_ms, self.log_id = found

    def _stored(self, stored: bytes) -> tuple[int, int, bytes]:
        """Position, epoch ms of the write, and id of the changelog's topic."""
        if len(stored) == POSITION_LAYOUT.size and stored[0] == FORMAT:
            return POSITION_LAYOUT.unpack(stored)[1:]
        if len(stored) == POSITION_2.size and stored[0] == 2:
            return (*POSITION_2.unpack(stored)[1:], NO_ID)
        if len(stored) == POSITION_1.size and stored[0] == 1:
            return POSITION_1.unpack(stored)[1], self._touched_ms, NO_ID
        raise StoreCorrupt("store_format", f"{self.folder}: position record of an unknown format")

    def _now_ms(self) -> int:
        return round(self._clock() * 1000)

    @property
    def is_open(self) -> bool:
        """Whether rows can be read."""
        return self._db is not None

    def idle_s(self) -> float:
        """Wall-clock seconds between the last write of the rows on disk and the opening of the folder."""
        return max(self._opened_ms - self._written_ms, 0) / 1000

    def wipe(self) -> None:
        """Delete the folder; the next `open` starts empty."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.position = -1
        self.log_id = NO_ID
        self.damaged = False

    def _fault(self, exc: Exception) -> RiffleError:
        """Classify an error of RocksDB. Emptying the folder repairs only damage: a lock or a full disk costs no rows."""
        text = str(exc)
        if any(text.startswith(sign) for sign in DAMAGE):
            if self._db is not None and self.folder.is_dir():
                (self.folder / DAMAGED).touch()
                self.damaged = True
            return StoreCorrupt("store_unreadable", f"{self.folder}: {text}")
        return NotReady("store_unavailable", f"{self.folder} cannot be opened now: {text}")

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys`, None where absent, in the same order.

        Raises:
            StoreCorrupt: a damaged block; the next `open` raises it too.
        """
        assert self._db is not None
        try:
            return list(self._db.get(list(keys))) if keys else []
        except Exception as exc:
            raise self._fault(exc) from exc

    def write(self, rows: Mapping[bytes, bytes | None], position: int) -> None:
        """Write all rows (None deletes), and `position` and the rows of `ABOUT_ROWS` with the last of them.

        Many rows are split into several batches, because one memtable would hold a whole batch of any size. After a crash some
        rows may be newer than `position`. The replay from there writes them again, with their newest values.

        Raises:
            StoreCorrupt: a damaged block; the next `open` raises it too.
            NotReady: the store cannot be written to now, as on a full disk, or it was closed.
        """
        opened = self._db
        batch, size = WriteBatch(raw_mode=True), 0
        with self._writing:
            if self._db is None or self._db is not opened:
                raise NotReady("store_closed", f"{self.folder} was closed")
            about = {key: value for key, value in rows.items() if key[:1] == ABOUT_ROWS}
            for key, value in (row for row in rows.items() if row[0] not in about):
                size += _put(batch, key, value)
                if size >= MAX_BATCH_BYTES:
                    self._write(batch)
                    batch, size = WriteBatch(raw_mode=True), 0
            # last, so that at no moment and after no crash they describe rows that are missing
            for key, value in about.items():
                _put(batch, key, value)
            batch.put(POSITION, POSITION_LAYOUT.pack(FORMAT, position, self._now_ms(), self.log_id))
            self._write(batch)
            self.position = position

    def _write(self, batch: WriteBatch) -> None:
        assert self._db is not None
        try:
            self._db.write(batch, self._unlogged)
        except Exception as exc:  # includes damage that a compaction found since the last write
            raise self._fault(exc) from exc

    def scan(self, prefix: bytes, start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows whose key starts with `prefix`, from `start` on, in key order.

        Raises:
            StoreCorrupt: a damaged block; the next `open` raises it too.
        """
        assert self._db is not None
        yield from self._rows(self._db.iter(), max(prefix, start), prefix)

    def _rows(self, cursor: Any, start: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        cursor.seek(start)
        while cursor.valid():
            key = cursor.key()
            if not key.startswith(prefix):
                return
            yield key, cursor.value()
            cursor.next()
        try:
            cursor.status()  # because a cursor ends at a damaged block as it does at the last row
        except Exception as exc:
            raise self._fault(exc) from exc

    def keys(self, prefix: bytes, start: bytes, most: int) -> list[bytes]:
        """At most `most` keys that start with `prefix`, from `start` on, in key order.

        May run in a thread during writes. The caller makes sure that the store is not closed meanwhile.

        Raises:
            StoreCorrupt: a damaged block; the next `open` raises it too.
        """
        assert self._db is not None
        return [key for key, _ in islice(self._rows(self._db.iter(), max(prefix, start), prefix), most)]

    def digest(self) -> tuple[int, Digest]:
        """A hash over all rows and the position that they include, as of one moment. May run in a thread during writes.

        Raises:
            NotReady: the store is being closed.
            StoreCorrupt: a damaged block.
        """
        with self._reading:
            return self._digest()

    def _digest(self) -> tuple[int, Digest]:
        if self._db is None:
            raise NotReady("store_closed", f"{self.folder} is closed")
        position = -1
        with self._writing:
            cursors = [self._db.snapshot().iter()]

        def rows() -> Iterator[tuple[bytes, bytes]]:
            nonlocal position
            for n, (key, value) in enumerate(self._rows(cursors.pop(), b"", b"")):
                if n % 256 == 0 and self._closing.is_set():
                    raise NotReady("store_closed", f"{self.folder} is being closed")
                if key == POSITION:
                    position = self._stored(value)[0]
                else:
                    yield key, value

        made = digest(rows())
        return position, made

    def close(self) -> None:
        """Close the folder; safe to call twice. A running digest or write ends first."""
        self._closing.set()
        with self._reading, self._writing:
            self._release()
        self._closing.clear()

    def _release(self) -> None:
        if self._db is not None:
            try:
                self._db.close()
            except Exception as exc:  # rows that are not in a file by now are replayed
                log.warning("not all could be written at the end: %s", self._fault(exc))
            self._db = None


def _put(batch: WriteBatch, key: bytes, value: bytes | None) -> int:
    """Add a row to a batch; returns the size of its value in bytes."""
    if value is None:
        batch.delete(key)
        return 0
    batch.put(key, value)
    return len(value)
