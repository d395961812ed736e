"""Applies the broadcast topics to the item store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from agents.metrics import Metrics
from models.items.store import ItemStore
from models.items.vectors import vectors_from
from models.state.rows import ItemStatRow
from schemas.codec import Headers, Registry, decode, is_plain, look_up, schema_ids
from schemas.entries import entry_of
from schemas.errors import BadEvent, BadInput, TransientError
from schemas.parsing import MAX_TIME_MS
from streams.kafka.chunks import Chunk

__all__ = ["Catalogue"]

log = logging.getLogger(__name__)

KEPT_BYTES = 64 << 20
"Maximum size in bytes of the entries that wait for their schema."
RETRY_S = 1.0
MAX_COUNT, MAX_SUM, MAX_WEIGHT = 2**40, 1e300, 3e38
"Limits of numbers in Riffle's own topics: far above those that it writes, and within the range of the columns."


class Catalogue:
    """Handlers of the items, item-vectors, item-stats and neighbours topics. A bad record is counted and skipped.

    An entry whose schema is not known yet is kept until the registry answers; other entries are applied meanwhile.
    """

    def __init__(self, items: ItemStore, metrics: Metrics, registry: Registry | None = None) -> None:
        self._items = items
        self._metrics = metrics
        self._registry = registry
        self._kept: dict[bytes, tuple[bytes, Headers]] = {}
        "By key, the newest value that waits for its schema, with its headers."
        self._kept_bytes = 0
        self._waiting: dict[int, asyncio.Task[None]] = {}
        "By schema id, the task that waits for it."

    async def on_items(self, chunk: Chunk) -> None:
        """Apply catalogue entries; an empty value deletes the item."""
        await look_up(self._registry, chunk.values, chunk.headers)
        keys, values, headers = chunk.keys, chunk.values, chunk.headers
        for n in self._changed(keys, values, headers):
            try:
                self._take(values[n], keys[n], headers[n])
            except TransientError:
                self._keep(keys[n] or b"", values[n] or b"", headers[n])
        self._metrics.items_waiting.set(len(self._kept))

    def _changed(
        self, keys: Sequence[bytes | None], values: Sequence[bytes | None], headers: Sequence[Headers]
    ) -> Sequence[int]:
        """List again the items whose record is the one that the store made their row of; returns the other records' places."""
        every = range(len(keys))
        if self._kept or len(set(keys)) < len(keys):  # an entry that waits, and an earlier record of a key, must not win
            return every
        plain = [n for n in every if keys[n] and is_plain(values[n], headers[n])]
        rows = self._items.unchanged([keys[n] or b"" for n in plain], [values[n] or b"" for n in plain])
        found = rows >= 0
        self._items.list_again(rows[found])
        self._metrics.items.add(int(found.sum()), outcome="applied")
        same = {plain[n] for n in np.flatnonzero(found).tolist()}
        return [n for n in every if n not in same] if same else every

    def _take(self, value: bytes | None, key: bytes | None, headers: Headers) -> None:
        """Apply an entry, or count its rejection; raises NotReady while its schema is not known."""
        try:
            entry = entry_of(value, key, headers, self._registry)
            if isinstance(entry, str):
                self._items.remove(entry)
            else:
                self._items.upsert(entry, value or b"" if is_plain(value, headers) else b"")
                if key != entry.item_id.encode():
                    self._metrics.items_under_another_key.add()
        except BadInput as exc:
            self._metrics.items.add(outcome="rejected", code=exc.code)
        except TransientError:
            raise
        except Exception:
            log.exception("a record of the catalogue")
            self._metrics.items.add(outcome="rejected", code="internal")
        else:
            self._metrics.items.add(outcome="applied")
            self._forget(key or b"")

    def _keep(self, key: bytes, value: bytes, headers: Headers) -> None:
        self._forget(key)
        if self._kept_bytes + len(value) > KEPT_BYTES:
            log.warning("a catalogue entry is skipped until the next start: its schema is not known yet, and too many wait")
            self._metrics.items.add(outcome="rejected", code="registry_unavailable")
            return
        self._kept[key] = (value, headers)
        self._kept_bytes += len(value)
        for schema_id in schema_ids([value], [headers]) - self._waiting.keys():
            self._waiting[schema_id] = asyncio.create_task(self._after(schema_id))

    def _forget(self, key: bytes) -> None:
        """Discard a waiting entry, because a newer one replaces it."""
        self._kept_bytes -= len(self._kept.pop(key, (b"",))[0])

    async def _after(self, schema_id: int) -> None:
        """Apply the entries that wait for a schema when the registry answers."""
        assert self._registry is not None
        while waiting := [key for key, (value, headers) in self._kept.items() if schema_id in schema_ids([value], [headers])]:
            await self._registry.answered(schema_id)
            for key in waiting:
                value, headers = self._kept.get(key, (b"", ()))
                if schema_id in schema_ids([value], [headers]):
                    self._forget(key)
                    try:
                        self._take(value, key, headers)
                    except TransientError:  # not requested yet, because too many ids are pending
                        self._kept[key] = (value, headers)
                        self._kept_bytes += len(value)
                        await asyncio.sleep(RETRY_S)
            self._metrics.items_waiting.set(len(self._kept))
        del self._waiting[schema_id]

    def on_vectors(self, chunk: Chunk) -> None:
        """Apply the encoders' raw vectors of items; an empty value removes them."""
        for key, value in zip(chunk.keys, chunk.values, strict=True):
            try:
                if not value:
                    self._items.remove_vectors((key or b"").decode())
                    outcome = "removed"
                else:
                    item_id, vectors = vectors_from(decode("item_vectors", value)[0])
                    outcome = "odd_size" if self._items.set_vectors(item_id, vectors) else "applied"
            except (BadEvent, UnicodeDecodeError) as exc:
                self._metrics.item_vectors.add(outcome=exc.code if isinstance(exc, BadEvent) else "invalid_key")
            else:
                self._metrics.item_vectors.add(outcome=outcome)

    def _decoded(self, name: str, value: bytes | None) -> dict[str, Any] | None:
        """Decode a record of one of Riffle's own topics; None, and counted, if Riffle would not have written it."""
        if not value:
            return None
        try:
            datum = decode(name, value)[0]
            if not SOUND[name](datum):
                raise BadEvent("invalid_field", "numbers that are out of range")
        except BadEvent as exc:
            self._metrics.broadcast_rejected.add(schema=name, code=exc.code)
            return None
        return datum

    def _listens(self, partition: int) -> bool:
        return 0 <= partition < self._items.partitions and partition not in self._items.own_partitions

    def on_statistics(self, chunk: Chunk) -> None:
        """Apply absolute statistics of (item, source partition)."""
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
        """Apply absolute neighbours of items."""
        for value in _newest(chunk):
            datum = self._decoded("neighbours", value)
            if datum is not None:
                self._items.set_neighbours(datum["item_id"], datum["others"], datum["weights"], datum["total"])


def _sound_statistics(stats: Mapping[str, Any]) -> bool:
    counts = [*stats["counts"].values(), stats["value_count"]]
    return (
        all(0 <= count <= MAX_COUNT for count in counts)
        and all(0 <= stats[name] < MAX_TIME_MS for name in ("updated_at", "first_at"))
        and all(abs(stats[name]) <= MAX_SUM for name in ("value_sum", "popularity"))
    )


def _sound_neighbours(datum: Mapping[str, Any]) -> bool:
    numbers = [*datum["weights"], datum["total"]]
    return len(datum["others"]) == len(datum["weights"]) and all(0 <= number <= MAX_WEIGHT for number in numbers)


SOUND: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "item_statistics": _sound_statistics,
    "neighbours": _sound_neighbours,
}


def _newest(chunk: Chunk) -> Iterable[bytes | None]:
    """Return the newest value of each key in a chunk, because each value replaces the earlier ones."""
    keyed = {
        offset if key is None else key: value
        for key, offset, value in zip(chunk.keys, chunk.offsets, chunk.values, strict=True)
    }
    return keyed.values()
