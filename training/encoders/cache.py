"""Cache of item vectors: each content is encoded once.

New vectors are appended to a store keyed by the content's sha256. So an interrupted run continues where it stopped, and an item
is encoded again only when its content changes.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from schemas.records import Item
from training.encoders.encoder import Encoder, Progress

__all__ = ["VectorCache", "encode_into", "encode_items"]

SHARD = 512
"Vectors per file of the cache."
SMALL_FILES = 64
"Number of partly filled cache files at which they are joined. Items that arrive in small batches leave many of them."


class VectorCache:
    """Vectors of one encoder by content hash, in files of at most SHARD entries. A file is written whole or not at all."""

    def __init__(self, folder: Path, encoder: Encoder) -> None:
        self._folder = folder / encoder.name
        self._kind = np.dtype([("key", "S32"), ("readable", "?"), ("vector", "<f4", (encoder.dimensions,))])
        self._vectors: dict[bytes, NDArray[np.float32] | None] = {}
        self._held: list[tuple[bytes, bool, NDArray[np.float32]]] = []
        self._written: set[Path] = set()
        small = [path for path in sorted(self._folder.glob("*.npy")) if 0 < self._read(path) < SHARD]
        if len(small) >= SMALL_FILES:
            self._join(small)

    def _read(self, path: Path) -> int:
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            path.unlink(missing_ok=True)  # contents of an unreadable cache file are encoded again
            return 0
        if rows.dtype != self._kind:
            return 0
        for row in rows:
            self._vectors[bytes(row["key"]).ljust(32, b"\0")] = row["vector"] if row["readable"] else None
        return len(rows)

    def _join(self, paths: Sequence[Path]) -> None:
        """Write the entries of these files into full ones, and only then delete the files."""
        for path in paths:
            for row in np.load(path, allow_pickle=False):
                self.put(bytes(row["key"]).ljust(32, b"\0"), row["vector"], bool(row["readable"]))
        written = self.flush()
        for path in paths:
            if path not in written:
                path.unlink(missing_ok=True)

    def __len__(self) -> int:
        return len(self._vectors)

    def __contains__(self, key: bytes) -> bool:
        return key in self._vectors

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """Return the vector; None when it is not cached or the content cannot be read."""
        return self._vectors.get(key)

    def put(self, key: bytes, vector: NDArray[np.float32], readable: bool) -> None:
        """Store a vector; durable after `flush`."""
        self._vectors[key] = vector if readable else None
        self._held.append((key, readable, vector))
        if len(self._held) >= SHARD:
            self.flush()

    def flush(self) -> set[Path]:
        """Write pending vectors; returns the files written since the cache was opened."""
        if not self._held:
            return self._written
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = np.array(self._held, self._kind)
        name = hashlib.sha256(rows["key"].tobytes()).hexdigest()[:24]
        part = self._folder / f".{name}-{os.getpid()}.part"
        with part.open("wb") as out:
            np.save(out, rows, allow_pickle=False)
        part.replace(self._folder / f"{name}.npy")
        self._written.add(self._folder / f"{name}.npy")
        self._held = []
        return self._written


def encode_items(
    items: Sequence[Item], encoder: Encoder, cache: Path, progress: Progress | None = None
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Encode items: vectors float32 `(n, d)`, zeros where missing, and a mask of those present, bool `(n,)`."""
    kept = VectorCache(cache, encoder)
    keys = encode_into(kept, items, encoder, progress)
    out = np.zeros((len(items), encoder.dimensions), np.float32)
    present = np.zeros(len(items), np.bool_)
    for n, key in enumerate(keys):
        vector = None if key is None else kept.get(key)
        if vector is not None:
            out[n], present[n] = vector, True
    return out, present


def encode_into(
    kept: VectorCache, items: Sequence[Item], encoder: Encoder, progress: Progress | None = None
) -> list[bytes | None]:
    """Add missing vectors of these items to `kept`. Returns each content's sha256, None where an item lacks the modality."""
    encoder.prepare(items, progress)
    keys: list[bytes | None] = []
    todo: dict[bytes, int] = {}
    lengths: list[int] = []
    for n, item in enumerate(items):
        content = encoder.content(item)
        lengths.append(len(content or b""))
        key = None if content is None else hashlib.sha256(content).digest()
        keys.append(key)
        if key is not None and key not in kept:
            todo.setdefault(key, n)
    # encode contents of similar length together, to reduce padding
    order = sorted(todo.items(), key=lambda pair: -lengths[pair[1]])
    done = 0
    try:
        for batch in _batches(order, encoder.batch):
            contents = [encoder.content(items[n]) for _, n in batch]
            vectors, readable = encoder.encode([content or b"" for content in contents])
            for (key, _), vector, fine in zip(batch, vectors, readable.tolist(), strict=True):
                kept.put(key, vector, fine)
            done += len(batch)
            if progress is not None:
                progress(done, len(order))
    finally:
        kept.flush()
    encoder.left_out([item for item, key in zip(items, keys, strict=True) if key is None or kept.get(key) is None])
    return keys


def _batches(rows: Sequence[tuple[bytes, int]], size: int) -> Iterator[Sequence[tuple[bytes, int]]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
