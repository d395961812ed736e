"""One partition's rows on disk: a RocksDB folder whose every write is atomic and names the log position it includes."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rocksdict import BlockBasedOptions, Cache, Options, Rdict, WriteBatch

from schemas.errors import StoreCorrupt
from streams.digests import Digest, digest

__all__ = ["PartitionStore", "block_cache"]

FORMAT = 1
POSITION = b"\x00position"
POSITION_LAYOUT = struct.Struct("<Bq")


def block_cache(megabytes: int) -> Cache:
    """A block cache to be shared by all stores of a process."""
    return Cache(megabytes << 20)


class PartitionStore:
    """Rows of one table partition.

    `position` is the changelog offset up to which the rows are complete (-1: nothing yet). It is stored in the same
    batch as the rows, so that after a crash the rows and the position always fit.
    """

    def __init__(self, folder: Path, cache: Cache) -> None:
        self.folder = folder
        self._cache = cache
        self._db: Rdict | None = None
        self.position = -1

    def open(self) -> None:
        """Open or create the folder.

        Raises:
            StoreCorrupt: RocksDB cannot read it, or it carries another format. `wipe` and a replay rebuild it.
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
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = Rdict(str(self.folder), options)
            stored = self._db.get(POSITION)
        except Exception as exc:
            raise StoreCorrupt("store_unreadable", f"{self.folder}: {exc}") from exc
        if stored is None:
            self.position = -1
            return
        if len(stored) != POSITION_LAYOUT.size or stored[0] != FORMAT:
            raise StoreCorrupt("store_format", f"{self.folder}: position record of an unknown format")
        self.position = POSITION_LAYOUT.unpack(stored)[1]

    def wipe(self) -> None:
        """Delete the folder; the next `open` starts empty."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.position = -1

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values of `keys`, None where absent, in the same order."""
        assert self._db is not None
        return list(self._db.get(list(keys))) if keys else []

    def write(self, rows: Mapping[bytes, bytes | None], position: int) -> None:
        """Write all rows (None deletes) and `position` in one atomic batch."""
        assert self._db is not None
        batch = WriteBatch(raw_mode=True)
        for key, value in rows.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        batch.put(POSITION, POSITION_LAYOUT.pack(FORMAT, position))
        self._db.write(batch)
        self.position = position

    def scan(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows whose key starts with `prefix`, in key order."""
        assert self._db is not None
        for key, value in self._db.items(from_key=prefix):
            if not key.startswith(prefix):
                return
            yield key, value

    def digest(self) -> tuple[int, Digest]:
        """A hash over all rows, and the position they include, as of one moment; may run in a thread beside writes."""
        assert self._db is not None
        position = -1

        def rows() -> Iterator[tuple[bytes, bytes]]:
            nonlocal position
            for key, value in self._db.snapshot().items():  # type: ignore[union-attr]
                if key == POSITION:
                    position = POSITION_LAYOUT.unpack(value)[1]
                else:
                    yield key, value

        made = digest(rows())
        return position, made

    def close(self) -> None:
        """Close the folder; safe to call twice."""
        if self._db is not None:
            self._db.close()
            self._db = None
