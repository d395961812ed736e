"""Broadcast topics into the item store."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

from agents.metrics import Metrics
from models.items import ItemStore
from models.state import ItemStatRow
from models.vectors import vectors_from
from schemas.codec import Registry, decode
from schemas.errors import BadEvent, BadInput, BadItem, TransientError
from schemas.validation import item_from
from streams.chunks import Chunk

__all__ = ["Catalogue"]

log = logging.getLogger(__name__)


class Catalogue:
    """Handlers of the items, item-vectors, item-stats and neighbours topics. A bad record is counted and skipped."""

    def __init__(self, items: ItemStore, metrics: Metrics, registry: Registry | None = None) -> None:
        self._items = items
        self._metrics = metrics
        self._registry = registry

    def on_items(self, chunk: Chunk) -> None:
        """The catalogue: an empty value deletes."""
        outcomes: Counter[tuple[str, str]] = Counter()
        for key, value, headers in zip(chunk.keys, chunk.values, chunk.headers, strict=True):
            try:
                if not value and not key:
                    raise BadItem("null_key", "a deletion needs the item_id as its key")
                if not value:
                    self._items.remove((key or b"").decode())
                else:
                    self._items.upsert(item_from(decode("item", value, headers, self._registry)[0]))
            except (BadInput, UnicodeDecodeError) as exc:
                code = exc.code if isinstance(exc, BadInput) else "invalid_key"
                outcomes["rejected", code] += 1
            except TransientError:
                raise
            except Exception:
                log.exception("a record of the catalogue")
                outcomes["rejected", "internal"] += 1
            else:
                outcomes["applied", ""] += 1
        for (outcome, code), n in outcomes.items():
            self._metrics.count("items", n, outcome=outcome, **({"code": code} if code else {}))

    def on_vectors(self, chunk: Chunk) -> None:
        """Raw vectors per item, as encoders give them: an empty value takes them away."""
        for key, value in zip(chunk.keys, chunk.values, strict=True):
            try:
                if not value:
                    self._items.remove_vectors((key or b"").decode())
                    outcome = "removed"
                else:
                    item_id, vectors = vectors_from(decode("item_vectors", value)[0])
                    outcome = "odd_size" if self._items.set_vectors(item_id, vectors) else "applied"
            except (BadEvent, UnicodeDecodeError) as exc:
                self._metrics.count("item_vectors", outcome=exc.code if isinstance(exc, BadEvent) else "invalid_key")
            else:
                self._metrics.count("item_vectors", outcome=outcome)

    def _decoded(self, name: str, value: bytes | None) -> dict[str, Any] | None:
        if not value:
            return None
        try:
            return decode(name, value)[0]
        except BadEvent as exc:
            self._metrics.count("broadcast_rejected", schema=name, code=exc.code)
            return None

    def _listens(self, partition: int) -> bool:
        return 0 <= partition < self._items.partitions and partition not in self._items.own_partitions

    def on_statistics(self, chunk: Chunk) -> None:
        """Absolute statistics per (item, source partition)."""
        for value in _newest(chunk):
            stats = self._decoded("item_statistics", value)
            if stats is not None and self._listens(stats["partition"]):
                row = ItemStatRow(
                    stats["counts"],
                    stats["value_sum"],
                    stats["value_count"],
                    stats["popularity"],
                    stats["updated_at"],
                    stats["first_at"],
                )
                self._items.set_statistics(stats["item_id"], stats["partition"], row)

    def on_neighbours(self, chunk: Chunk) -> None:
        """Absolute neighbours per item."""
        for value in _newest(chunk):
            datum = self._decoded("neighbours", value)
            if datum is not None:
                self._items.set_neighbours(datum["item_id"], datum["others"], datum["weights"], datum["total"])


def _newest(chunk: Chunk) -> Iterable[bytes | None]:
    """Values of a chunk, of one key the newest alone: each replaces what came before it."""
    keyed = {
        offset if key is None else key: value
        for key, offset, value in zip(chunk.keys, chunk.offsets, chunk.values, strict=True)
    }
    return keyed.values()
