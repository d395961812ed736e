"""The neighbour table: co-visitation increments, by item, summed once and published whole."""

from __future__ import annotations

import logging

from rocksdict import Cache

from agents.metrics import Metrics
from agents.users import dead_letter
from models.items import NEIGHBOURS
from models.state import NeighbourRow
from schemas.codec import decode, encode
from schemas.errors import BadEvent
from streams.chunks import Chunk
from streams.partitions import Flush, Output, PartitionState
from streams.settings import Settings
from streams.store import PartitionStore

__all__ = ["CovisitPartition"]

log = logging.getLogger(__name__)


class CovisitPartition:
    """Neighbours of the items of one partition of the covisits topic.

    Increments are sent in the transaction that commits the events they come from and are applied under the same
    offset rule, so that each event counts once from end to end.
    """

    def __init__(self, settings: Settings, partition: int, cache: Cache, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.partition = partition
        self.state = PartitionState(
            settings,
            PartitionStore(settings.data_dir / "tables" / "covisits" / str(partition), cache),
            source=settings.topic("covisits"),
            changelog=settings.topic("covisits-changelog"),
            partition=partition,
            group=settings.app_id,
            take=self._take,
        )
        self._rows: dict[str, NeighbourRow] = {}
        self._dirty: set[str] = set()
        self._outputs: list[Output] = []

    async def open(self) -> None:
        """Restore; afterwards `apply` may be called."""
        await self.state.open()
        self.state.ready.set()

    def apply(self, chunk: Chunk) -> None:
        """Add a chunk's increments."""
        increments: list[tuple[str, list[str], list[float]]] = []
        for n, offset in enumerate(chunk.offsets):
            if offset <= self.state.applied:
                continue
            try:
                datum = decode("covisit", chunk.values[n] or b"", chunk.headers[n])[0]
            except BadEvent as exc:
                self._metrics.count("covisits", outcome="dead_letter")
                self._outputs.append(dead_letter(self._settings, chunk, n, exc.code, exc.message))
                continue
            increments.append((datum["item_id"], datum["others"], datum["weights"]))
        self._load({item_id for item_id, _, _ in increments})
        for item_id, others, weights in increments:
            self._rows[item_id].add(others, weights)
            self._dirty.add(item_id)
        self.state.applied = max(self.state.applied, chunk.last_offset)

    def _load(self, items: set[str]) -> None:
        missing = [item for item in items if item not in self._rows]
        for item, data in zip(missing, self.state.store.get_many([i.encode() for i in missing]), strict=True):
            self._rows[item] = NeighbourRow() if data is None else NeighbourRow.decode(data)

    def _take(self) -> Flush | None:
        if self.state.applied == self.state.durable:
            return None
        flush = Flush(outputs=self._outputs, applied=self.state.applied)
        topic = self._settings.topic("neighbours")
        for item_id in self._dirty:
            row = self._rows[item_id]
            flush.rows[item_id.encode()] = row.encode()
            heaviest = row.heaviest(NEIGHBOURS)
            datum = {
                "item_id": item_id,
                "others": [other for other, _ in heaviest],
                "weights": [weight for _, weight in heaviest],
                "total": row.total,
            }
            flush.outputs.append(Output(topic, item_id.encode(), encode("neighbours", datum), partition=0))
        self._dirty, self._outputs = set(), []
        return flush

    async def flush(self) -> None:
        """Make what is applied durable, then forget clean rows beyond the cache's size."""
        await self.state.flush()
        excess = len(self._rows) - self._settings.cache_users
        if excess > 0:
            for item in [item for item in self._rows if item not in self._dirty][:excess]:
                del self._rows[item]

    async def close(self) -> None:
        """Let go of the partition without a flush."""
        await self.state.close()
