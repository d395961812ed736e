"""A worker simulated from history: the same tables and the same code, in one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from models.items.store import NEIGHBOURS, ItemStore
from models.items.vectors import ItemVector
from models.pipeline.batch import RECENT
from models.pipeline.slot import ModelSlot
from models.state.kernels.user_rows import UNIT
from models.state.rows import UserRecord
from models.state.users import Users
from models.tables.neighbours import CovisitSums, NeighbourTable
from models.tables.statistics import StatisticsTable
from models.tables.users import UserTable, interactions_only
from schemas.columns import EventColumns
from schemas.records import Interaction, Item

__all__ = ["SimulatedWorker", "Vectors"]

Vectors = Mapping[str, Sequence[ItemVector]]
"Vectors from the encoders, by item id."


class SimulatedWorker:
    """State of workers after the events applied so far: users, statistics, neighbours, and a catalogue.

    An item with `published_at` enters the catalogue when event time reaches it; others are present from the start. `vectors`
    of an item enter together with it.
    """

    def __init__(self, items: Iterable[Item], slot: ModelSlot | None = None, vectors: Vectors | None = None) -> None:
        self.items = ItemStore(partitions=1)
        self.slot = slot or ModelSlot()
        "The serving release, if any."
        self._users = UserTable(self.items, lambda keys: [None] * len(keys))
        self._statistics = StatisticsTable(self.items)
        self._covisits = CovisitSums(self.items)
        self._neighbours = NeighbourTable(lambda keys: [None] * len(keys))
        self._stale: set[int] = set()
        "Hashes of items whose neighbours in the item store are older than the rows here."
        self._vectors = vectors or {}
        catalogue = list(items)
        for item in catalogue:
            if item.published_at is None:
                self._enter(item)
        late = [item for item in catalogue if item.published_at is not None]
        self._unpublished = deque(sorted(late, key=lambda item: item.published_at or 0))

    def publishes(self, now_ms: int) -> bool:
        """Whether `publish` would add an item."""
        return bool(self._unpublished) and (self._unpublished[0].published_at or 0) <= now_ms

    def publish(self, now_ms: int) -> None:
        """Add the items published by `now_ms`."""
        while self.publishes(now_ms):
            self._enter(self._unpublished.popleft())

    def _enter(self, item: Item) -> None:
        self.items.upsert(item)
        if item.item_id in self._vectors:
            self.items.set_vectors(item.item_id, self._vectors[item.item_id])

    def apply(self, events: Sequence[Interaction]) -> None:
        """Apply events in order. The size of chunks does not affect the state once all items are published."""
        columns = interactions_only(EventColumns.of(events, range(len(events))))
        if not len(columns):
            return
        applied = self._users.apply(columns)
        self._statistics.apply(columns, applied)
        self._statistics.copy_to_store(0)
        self._statistics.take()
        self.items.stream_time_ms = max(self.items.stream_time_ms, int(columns.event_time.max()))
        self._covisits.add(applied)
        for _, increments in self._covisits.take(1, self._covisits.hashes()):
            self._neighbours.add(increments)
            for code in increments.items.tolist():
                self._stale.add(code)
                if (item_id := self.items.id_of(code)) is not None:
                    self.items.set_neighbour_total(item_id, self._neighbours.total(code))

    def record(self, user_id: str) -> UserRecord | None:
        """Stored record of a user, if any."""
        return self._users.lookup([user_id])[0]

    def columns(self, user_ids: Sequence[str]) -> Users:
        """Stored records of users as columns."""
        return self._users.columns(user_ids)

    def know(self, user: UserRecord | None) -> None:
        """Update the neighbours that an answer to this user reads. Others stay stale until they are needed."""
        if user is None:
            return
        looked_at = self._stale.intersection(user.history["item"][-RECENT:].tolist())
        self._stale -= looked_at
        codes = sorted(looked_at)
        for code, row in zip(codes, self._neighbours.lookup([c.to_bytes(8, "little") for c in codes]), strict=True):
            item_id = self.items.id_of(code)
            if row is not None and item_id is not None:
                named = [(other, weight) for o, weight in row.heaviest(NEIGHBOURS) if (other := self.items.id_of(o))]
                others, weights = [other for other, _ in named], [weight for _, weight in named]
                self.items.set_neighbours(item_id, others, weights, row.total * UNIT)
