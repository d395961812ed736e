"""Raw text and image vectors of items from encoders, and their projection by a release.

Outside an encoder all vectors have half precision: on the topic, in memory and in training, which rounds them first.
Therefore a vector computed live equals the one that training would compute for the same content.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.state.rows import hash64
from schemas.errors import BadEvent

__all__ = [
    "MODALITIES",
    "ItemVector",
    "VectorStore",
    "fingerprint",
    "project",
    "rounded",
    "unit_rows",
    "vectors_from",
    "vectors_to",
]

MODALITIES = ("text", "image")
MAX_DIMENSIONS = 8_192
MAX_VECTORS = 16
HALF = np.dtype("<f2")


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1: float32 `(n, d)`; rows of length 0 stay 0."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: NDArray[np.float32] = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)
    return scaled


def rounded(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round vectors to half precision, as the topic does; the result is still float32."""
    return vectors.astype(HALF).astype(np.float32)


def project(vectors: NDArray[np.float32], projection: NDArray[np.float32]) -> NDArray[np.float32]:
    """Project raw vectors `(n, d)` by `(d + 1, kept)`, whose last row is the offset: float32 `(n, kept)`."""
    projected: NDArray[np.float32] = vectors @ projection[:-1] + projection[-1]
    return projected


@dataclass(frozen=True, slots=True)
class ItemVector:
    """One encoder's vector of one item. `values` is None if the item lacks the modality or its content cannot be read."""

    modality: str
    encoder: str
    "Name and version of the encoder. Vectors of different encoders are not comparable."
    content_sha256: bytes
    "sha256 of the encoded content, 32 bytes; empty if the item lacks the modality."
    values: NDArray[np.float16] | None


def fingerprint(parts: Iterable[tuple[str, str, bytes]]) -> int:
    """Hash the inputs of an item's vectors, (modality, encoder, content sha256) of each, to a 64-bit number."""
    return hash64("\x1f".join(f"{modality} {encoder} {sha256.hex()}" for modality, encoder, sha256 in sorted(parts)))


def vectors_to(item_id: str, vectors: Sequence[ItemVector]) -> dict[str, Any]:
    """Build the datum of schema `item_vectors`; equal vectors give equal data."""
    return {
        "item_id": item_id,
        "vectors": [
            {
                "modality": vector.modality,
                "encoder": vector.encoder,
                "content_sha256": vector.content_sha256,
                "values": b"" if vector.values is None else vector.values.astype(HALF).tobytes(),
            }
            for vector in vectors
        ],
    }


def vectors_from(datum: Mapping[str, Any]) -> tuple[str, tuple[ItemVector, ...]]:
    """Read the datum that `vectors_to` builds.

    Raises:
        BadEvent: `invalid_field`, no item id, too many vectors, or values that are not a vector of finite numbers.
    """
    found = []
    if not datum["item_id"] or len(datum["vectors"]) > MAX_VECTORS:
        raise BadEvent("invalid_field", "an item without id, or with too many vectors", "vectors")
    for entry in datum["vectors"]:
        data: bytes = entry["values"]
        if len(data) % HALF.itemsize or len(data) > MAX_DIMENSIONS * HALF.itemsize:
            raise BadEvent("invalid_field", f"{len(data)} bytes are not a vector in half precision", "values")
        values = np.frombuffer(data, HALF) if data else None
        if values is not None and not bool(np.isfinite(values).all()):
            raise BadEvent("invalid_field", "a vector holds values that are not finite", "values")
        found.append(ItemVector(entry["modality"], entry["encoder"], entry["content_sha256"], values))
    return datum["item_id"], tuple(found)


class _Column:
    """Vectors of one encoder by item row; grows with the rows."""

    def __init__(self, dimensions: int) -> None:
        self.values = np.zeros((0, dimensions), HALF)
        self.present = np.zeros(0, np.bool_)

    def put(self, row: int, vector: NDArray[np.float16] | None) -> None:
        if row >= len(self.present):
            size = max(1_024, 2 * len(self.present), row + 1)
            values, present = np.zeros((size, self.values.shape[1]), HALF), np.zeros(size, np.bool_)
            values[: len(self.values)], present[: len(self.present)] = self.values, self.present
            self.values, self.present = values, present
        self.present[row] = vector is not None
        self.values[row] = 0 if vector is None else vector


class VectorStore:
    """Raw vectors by item row, one column per encoder. A release reads the columns of the encoders it was trained with.

    Vectors of several encoders may coexist, so that a release with another encoder can take over.
    """

    def __init__(self) -> None:
        self._columns: dict[str, _Column] = {}
        self._heard = np.zeros(0, np.int64)
        self.changes = 0
        "Number of times that an item's vectors were set or removed."

    def put(self, row: int, vectors: Sequence[ItemVector]) -> int:
        """Replace an item's vectors; vectors of other encoders stay. Returns the number of vectors of a wrong size."""
        unfit = 0
        for vector in vectors:
            column = self._columns.get(vector.encoder)
            if column is None:
                if vector.values is None:
                    continue
                column = self._columns[vector.encoder] = _Column(len(vector.values))
            if vector.values is not None and len(vector.values) != column.values.shape[1]:
                unfit += 1
                continue
            column.put(row, vector.values)
        self._note(row)
        return unfit

    def remove(self, row: int) -> None:
        """Remove an item's vectors."""
        for column in self._columns.values():
            if row < len(column.present):
                column.put(row, None)
        self._note(row)

    def _note(self, row: int) -> None:
        if row >= len(self._heard):
            heard = np.zeros(max(1_024, 2 * len(self._heard), row + 1), np.int64)
            heard[: len(self._heard)] = self._heard
            self._heard = heard
        self.changes += 1
        self._heard[row] = self.changes

    def changed(self, since: int) -> NDArray[np.intp]:
        """Return the rows whose vectors were set or removed after `changes` was `since`, in the order of these changes."""
        rows = np.flatnonzero(self._heard > since)
        return rows[np.argsort(self._heard[rows], kind="stable")]

    def change_of(self, row: int) -> int:
        """Return the value of `changes` at the last change of this row's vectors."""
        return int(self._heard[row]) if row < len(self._heard) else 0

    def read(self, encoder: str, rows: NDArray[np.intp], dimensions: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read the vectors of rows, float32 `(n, dimensions)`, zeros where missing; and whether each exists, bool `(n,)`.

        An unknown encoder, or one whose vectors have another size, has none.
        """
        values, present = np.zeros((len(rows), dimensions), np.float32), np.zeros(len(rows), np.bool_)
        column = self._columns.get(encoder)
        if column is not None and column.values.shape[1] == dimensions:
            inside = np.flatnonzero(rows < len(column.present))
            present[inside] = column.present[rows[inside]]
            values[present] = column.values[rows[present]]
        return values, present
