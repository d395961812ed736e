"""Compile the stream's loops ahead of time: `python -m models.warm`, once per installation."""

from __future__ import annotations

import numpy as np

from models.items.store import ItemStore
from models.tables.neighbours import CovisitSums, NeighbourTable
from models.tables.statistics import StatisticsTable
from models.tables.users import UserTable
from schemas.columns import EventColumns, Placed, decode_interactions
from schemas.kernels import partition_of, read_batch
from schemas.records import Interaction, Item

__all__ = ["warm"]


def warm() -> None:
    """Run every compiled loop once on two events. The first call on a machine takes about 25 s, later ones about 1 s.

    This keeps compilation out of the stream, because compiling a loop while events wait would block the whole worker.
    """
    store = ItemStore(1)
    store.upsert(Item("i1", categories=("c",)))
    events = EventColumns.of([Interaction("e1", "u", "i1", 1), Interaction("e2", "u", "i2", 2, value=1.0)], [0, 1])
    users, statistics = UserTable(store, lambda keys: [None] * len(keys)), StatisticsTable(store)
    applied = users.apply(events)
    users.columns(["u"])
    users.lookup(["u"])[0].seen.contains_many(store.bloom[:2])  # type: ignore[union-attr]
    statistics.apply(events, applied)
    statistics.take()
    sums, neighbours = CovisitSums(store), NeighbourTable(lambda keys: [None] * len(keys))
    sums.add(applied)
    for _, increments in sums.take(1, sums.hashes()):
        neighbours.add(increments)
    neighbours.take()
    decode_interactions([b""], [b"u"], [()], [0], placed=Placed(partition_of(b"u", 2), 2))
    read_batch(np.frombuffer(b"\x0c\0\0\0\1\1\0", np.uint8), 0, 7, np.empty((6, 1), np.int64))


if __name__ == "__main__":
    warm()
