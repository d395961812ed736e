"""The partitions that this worker holds: owned ones, and standby copies of others."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Collection, Iterator, Mapping
from typing import IO, Any

from agents.findings import heals, why
from agents.metrics import Metrics
from agents.partitions.covisits import CovisitPartition
from agents.partitions.users import ITEM, UserPartition
from models.items.store import ItemStore
from models.state.rows import ItemStatRow
from schemas.codec import Registry
from schemas.errors import ConfigError, NotReady, StoreCorrupt
from schemas.settings import Settings
from streams.embedded.process import PORT_S, answer_of, serving, wait_until
from streams.kafka import connect
from streams.kafka.assignor import ON_DISK, OWNER, STANDBY
from streams.state.rocks import PartitionStore, block_cache
from streams.state.standby import Standby, Times

__all__ = ["TABLES", "Ownership", "require_free", "require_port"]

log = logging.getLogger(__name__)

TABLES = {"users": ("interactions", "users-changelog"), "covisits": ("covisits", "covisits-changelog")}
"Source topic and changelog of each table, by short name."
Partition = UserPartition | CovisitPartition


def require_free(settings: Settings) -> None:
    """Check that a worker with these settings could start here, so that a mistake is one sentence and no stack trace.

    Raises:
        NotReady: another worker has locked the home, or a server listens on the HTTP port.
    """
    try:
        _locked(settings).close()
    except ConfigError as exc:
        raise NotReady(exc.code, exc.message) from exc
    require_port(settings, settings.web_port, "RIFFLE_WEB_PORT")


def require_port(settings: Settings, port: int, variable: str) -> None:
    """Check that no server listens on `port`, which `variable` sets.

    Raises:
        NotReady: one does.
    """
    host = "127.0.0.1" if settings.web_host in {"0.0.0.0", "::"} else settings.web_host  # noqa: S104 - not bound here
    if not wait_until(lambda: answer_of(port, b"", 0, host) is None, PORT_S):
        raise NotReady("port_in_use", f"port {port} is in use by another program or process: set {variable} to a free one")


def _locked(settings: Settings) -> IO[str]:
    """Lock the folder of the tables, until the result is closed."""
    folder, other = settings.data_dir / "tables", serving(settings)
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        lock.close()
        which = f"process {other.pid() or 'unknown'}, {other.address() or 'address unknown'}"
        message = (
            f"another worker runs on RIFFLE_HOME={settings.home} ({which}): for one more run `riffle up --workers 2`, or give"
            " it a RIFFLE_HOME and a RIFFLE_WEB_PORT of its own; or wait until that one has ended"
        )
        raise ConfigError("folder_in_use", message, "RIFFLE_HOME") from exc
    return lock


class Ownership:
    """Opens, keeps and closes partitions as the group assigns them.

    A partition that a rebalance assigns again stays open. Its rows in memory are valid unless another worker owned it in
    between, which the committed offset shows.
    """

    def __init__(self, settings: Settings, items: ItemStore, metrics: Metrics, registry: Registry | None) -> None:
        self._settings = settings
        self._items = items
        self._metrics = metrics
        self._registry = registry
        self._cache = block_cache(settings.block_cache_mb)
        self.users: dict[int, UserPartition] = {}
        self.covisits: dict[int, CovisitPartition] = {}
        changelogs = {table: settings.topic(changelog) for table, (_, changelog) in TABLES.items()}
        self._hashing = asyncio.Lock()
        self._lock: IO[str] | None = None
        times = {"users": Times(ITEM, lambda row: ItemStatRow.decode(row).updated_ms)}
        self.standby = Standby(settings, changelogs, settings.table_dir, self._cache, times)

    def held(self) -> dict[int, int]:
        """Return how this worker holds each partition number, for the assignor; called from the consumer's thread."""
        found = {}
        for folder in (self._settings.data_dir / "tables" / "users").glob("*"):
            if folder.name.isdigit():
                found[int(folder.name)] = ON_DISK
        found.update(dict.fromkeys(self.standby.numbers, STANDBY))
        found.update(dict.fromkeys(list(self.users), OWNER))
        return found

    def lock(self) -> None:
        """Lock the tables' folder for this process.

        Raises:
            ConfigError: another worker has locked it.
        """
        self._lock = _locked(self._settings)
        serving(self._settings).record(os.getpid(), self._settings.web)

    def parts(self) -> list[Partition]:
        """All owned partitions."""
        return [*self.users.values(), *self.covisits.values()]

    async def take(self, users: set[int], covisits: set[int], standby: frozenset[int]) -> None:
        """Own exactly these partitions of the two tables, and hold standby copies of `standby`; returns when all are restored.

        A partition that cannot be restored keeps its `trouble`; it does not affect the others. The copies are changed before
        partitions are opened: a copy that becomes a partition must be closed first, and a partition that becomes a copy is read
        by requests at once.
        """
        wanted: tuple[tuple[dict[int, Any], set[int]], ...] = ((self.users, users), (self.covisits, covisits))
        committed = await self._committed()
        failed: dict[tuple[str, int], str] = {}
        for parts, numbers in wanted:
            for number, part in list(parts.items()):
                state = part.state
                mine = number in numbers and state.ready.is_set() and state.trouble is None
                if mine and committed.get((state.source, number), -1) <= state.durable + 1:
                    state.take_from(0)  # the group reads it again
                    continue
                if mine:
                    log.warning("%s-%d was owned by another worker meanwhile: reading its rows again", state.source, number)
                del parts[number]
                if state.trouble is not None:
                    failed[state.changelog, number] = why(state.trouble)
                await part.close()
        for number in users - self.users.keys():
            self.users[number] = self._made(self.users, number)
            if (reach := self.standby.reached.get(("users", number))) is not None:
                self.users[number].held_time = reach.event_time_ms
        for number in covisits - self.covisits.keys():
            self.covisits[number] = self._made(self.covisits, number)
        for part in self.parts():
            if (reason := failed.get((part.state.changelog, part.partition))) is not None:
                part.state.require_probe(reason)
        try:
            await self.standby.follow(standby - users - covisits)
        except Exception as error:  # a failed copy must not affect owned partitions
            if not heals(error):
                raise
            log.warning("standby copies cannot be opened now: %s", why(error))
        opening = [part for part in self.parts() if not part.state.ready.is_set()]
        await asyncio.gather(*(self._open(part, committed) for part in opening))

    async def _open(self, part: Partition, committed: Mapping[tuple[str, int], int]) -> None:
        """Restore a partition; an error becomes its `trouble`, unless it is a bug of this program."""
        state = part.state
        try:
            await part.open(committed.get((state.source, part.partition), -1))
            if committed.get((state.source, part.partition), -1) > state.applied + 1:
                await state.move_back()
                raise StoreCorrupt(
                    "changelog_short",
                    f"{state.changelog}-{part.partition} lacks rows of events that were applied: these are read again",
                )
        except Exception as error:
            if not heals(error):
                raise
            log.warning("%s-%d cannot be opened now: %s", state.changelog, part.partition, why(error))
            state.fail(error)
        else:
            state.opened()
            if state.missing:
                self.count_missing(part, state.missing[1] - state.missing[0])

    def count_missing(self, part: Partition, records: int) -> None:
        """Count records that were deleted before they were applied."""
        self._metrics.events_missing.add(max(records, 0), topic=part.state.source, partition=part.partition)

    def _made(self, parts: Mapping[int, Any], number: int) -> Any:
        """Create a partition of the table `parts`, without opening it."""
        if parts is self.users:
            return UserPartition(self._settings, number, self._items, self._cache, self._metrics, self._registry)
        return CovisitPartition(self._settings, number, self._items, self._cache, self._metrics)

    def sources(self) -> list[tuple[str, int]]:
        """Return the source topics and partitions of the owned, restored tables."""
        return [(part.state.source, part.partition) for part in self.parts() if part.state.ready.is_set()]

    def troubled(self) -> list[Partition]:
        """Return the owned partitions that must be reopened."""
        return [part for part in self.parts() if part.state.trouble is not None]

    async def reopen(self, generation: int, keys: Collection[tuple[str, int] | None]) -> bool:
        """Try to reopen the failed partitions of these changelogs and numbers; returns whether any was opened.

        Their records were dropped meanwhile, so that they accept only chunks of later generations than this one.
        """
        committed = await self._committed()
        opened = False
        for part in self.troubled():
            if (part.state.changelog, part.partition) not in keys:
                continue
            parts: dict[int, Any] = self.users if isinstance(part, UserPartition) else self.covisits
            await part.close()
            fresh = parts[part.partition] = self._made(parts, part.partition)
            fresh.state.take_from(generation + 1)
            fresh.state.require_probe(part.state.probe_reason if part.state.trouble is None else why(part.state.trouble))
            await self._open(fresh, committed)
            opened |= fresh.state.trouble is None
        return opened

    async def _committed(self) -> dict[tuple[str, int], int]:
        """Read the group's committed offset (the next to read) of each source topic and partition."""
        admin = connect.admin(self._settings.kafka)
        try:
            await admin.start()
            offsets = await admin.list_consumer_group_offsets(self._settings.app_id)
        finally:
            await admin.close()
        return {(tp.topic, tp.partition): meta.offset for tp, meta in offsets.items()}

    async def close(self) -> None:
        """Close all partitions without a flush."""
        await asyncio.gather(self.standby.stop(), *(part.close() for part in self.parts()))
        self.users.clear()
        self.covisits.clear()

    def _stores(self) -> Iterator[tuple[str, int, str, PartitionStore, int]]:
        owned: tuple[tuple[str, Mapping[int, Any]], ...] = (("users", self.users), ("covisits", self.covisits))
        for table, parts in owned:
            for number, part in sorted(parts.items()):
                if part.state.ready.is_set():
                    yield table, number, "owner", part.state.store, 0
        for (table, number), store in sorted(self.standby.stores.items()):
            yield table, number, "standby", store, self.standby.lag.get((table, number), -1)

    async def tables(self, *, digests: bool = False) -> list[dict[str, object]]:
        """List the table partitions of this worker: role, changelog offset on disk; with `digests` a hash over the rows.

        A partition whose rows are incomplete has the role `restoring`, the offset -1 and no hash. Once their number is known,
        `restored` and `of` count the offsets of its changelog that were read and that are to be read.
        """
        found: list[dict[str, object]] = []
        restoring = [
            {
                "table": table,
                "partition": part.partition,
                "role": "restoring",
                "position": -1,
                **_progress(part.state.restoring),
            }
            for table, parts in (("users", self.users), ("covisits", self.covisits))
            for part in parts.values()
            if not part.state.ready.is_set()
        ]
        for table, number, role, store, lag in list(self._stores()):
            facts: dict[str, object] = {"table": table, "partition": number, "role": role, "position": store.position}
            if role == "standby":
                facts["lag"] = lag
            if digests:
                try:
                    async with self._hashing:
                        position, made = await asyncio.to_thread(store.digest)
                except NotReady:
                    continue  # it was closed meanwhile, because the partition left this worker
                facts |= {"position": position, "rows": made.rows, "hash": made.hash}
            found.append(facts)
        return [*found, *restoring]


def _progress(restoring: tuple[int, int] | None) -> dict[str, object]:
    return {} if restoring is None else {"restored": restoring[0], "of": restoring[1]}
