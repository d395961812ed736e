"""Rows of users that this worker holds without being their ready owner: standby copies, and partitions that are not ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from agents.partitions.users import USER, UserPartition
from models.items.store import ItemStore
from models.state.rows import UserRecord
from models.tables.users import UserTable
from schemas.errors import RiffleError
from schemas.records import After, AsOf
from streams.state.rocks import PartitionStore
from streams.state.standby import Standby

__all__ = ["MIRROR", "NO_STATE", "STANDBY", "Copies", "Found"]

STANDBY, MIRROR, NO_STATE = "standby", "mirror", "no_state"
"Values of `degraded` in a slate."


@dataclass(frozen=True, slots=True)
class Found:
    """A user's record that does not come from the ready owner of their partition."""

    record: UserRecord | None
    "None for a user of whom nothing is known."
    as_of: AsOf | None
    "The newest event that the rows include for certain; None if that is not known."
    degraded: str
    "What a slate from this record is marked with."

    def reflects(self, after: After | None) -> bool:
        """Return whether the event of a token is in the rows for certain; True without a token."""
        if after is None:
            return True
        return self.as_of is not None and self.as_of.partition == after.partition and self.as_of.offset >= after.offset


class Copies:
    """Finds users in rows that are complete up to some event. `as_of` is read before the record, so it is never too new."""

    def __init__(self, users: Mapping[int, UserPartition], standby: Standby, items: ItemStore) -> None:
        self._users = users
        self._standby = standby
        self._items = items

    def find(self, partition: int, user_id: str) -> Found | None:
        """Return what the rows of a partition have of a user; None if no rows of it are held here, or they cannot be read."""
        part = self._users.get(partition)
        if part is not None and part.state.held >= 0:
            return self._read(part.state.store, AsOf(partition, part.state.held, part.held_time), user_id)
        reach, store = self._standby.reached.get(("users", partition)), self._standby.stores.get(("users", partition))
        if reach is None or store is None:
            return None
        as_of = AsOf(partition, reach.applied, reach.event_time_ms) if reach.applied >= 0 else None
        return self._read(store, as_of, user_id)

    def _read(self, store: PartitionStore, as_of: AsOf | None, user_id: str) -> Found | None:
        if not store.is_open:
            return None
        table = UserTable(self._items, lambda keys: store.get_many([USER + key for key in keys]))
        try:
            return Found(table.lookup([user_id])[0], as_of, STANDBY)
        except RiffleError:
            return None  # damaged: the watch finds it, and has the rows rebuilt
