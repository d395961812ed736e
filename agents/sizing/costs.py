"""Measured costs, read from `costs.toml`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path

__all__ = ["COSTS", "Cost", "Costs", "described"]

FILE = Path(__file__).with_name("costs.toml")


@dataclass(frozen=True, slots=True)
class Cost:
    """One entry of `costs.toml`.

    value: in `unit`. measured: whether it was measured, or assumed.
    by: the command that measures it, or the reason of an assumption.
    """

    value: float
    unit: str
    measured: bool
    by: str


@dataclass(frozen=True, slots=True)
class Costs:
    """The values by name. Names end in their unit: `_s` seconds of one core (or of time, for waits), `_bytes`, `_per_s`."""

    event_s: float
    standby_event_s: float
    idle_cores: float
    flush_s: float
    request_s: float
    request_sqrt_item_s: float
    statistics_record_s: float
    neighbours_record_s: float
    item_decode_s: float
    item_release_s: float
    item_map_s: float
    restore_s: float
    restore_open_s: float
    join_s: float
    place_s: float
    session_s: float
    process_bytes: float
    cache_bytes: float
    item_own_bytes: float
    item_partition_bytes: float
    shelf_item_bytes: float
    summary_bytes: float
    event_bytes: float
    item_bytes: float
    statistics_record_bytes: float
    impression_bytes: float
    request_reply_bytes: float
    table_overhead: float
    changelog_overhead: float
    statistics_per_flush: float
    neighbours_per_partition_per_s: float
    commit_interval_s: float
    own_share: float
    broadcast_share: float
    pod_bytes_most: float
    start_s_most: float
    request_s_most: float
    recovery_s_most: float
    rebalance_s_most: float
    partition_read_bytes_per_s_most: float
    broker_write_bytes_per_s_most: float
    broker_replicas_most: float
    broker_bytes_most: float
    store_writes_per_s_most: float
    store_bytes_most: float
    rows: tuple[tuple[float, float], ...] = field(default=())
    "Bytes of a user's record by its number of events, both increasing."

    def row_bytes(self, events: float) -> float:
        """Bytes of the record of a user with that many events: a straight line between measured points on both logarithms."""
        (first, least), (last, most) = self.rows[0], self.rows[-1]
        if events <= first:
            return least
        if events >= last:
            return most
        for (low, below), (high, above) in zip(self.rows, self.rows[1:], strict=False):
            if events <= high:
                share = math.log(events / low) / math.log(high / low)
                return float(below * (above / below) ** share)
        raise AssertionError(events)

    def item_memory(self, partitions: int) -> float:
        """Bytes of a worker's own memory for an item with statistics: some columns have a value per source partition."""
        return self.item_own_bytes + partitions * self.item_partition_bytes

    def request_cpu_s(self, items: float) -> float:
        """Seconds of one core for a request with a release, in a batch. The search of an index grows with the square root."""
        return self.request_s + self.request_sqrt_item_s * math.sqrt(items)


@cache
def described(path: Path = FILE) -> Mapping[str, Cost]:
    """Every entry with its unit and source."""
    held = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: Cost(one["value"], one["unit"], "measured" in one, one.get("measured") or one["assumed"])
        for name, one in held["costs"].items()
    }


def _read(path: Path = FILE) -> Costs:
    held = tomllib.loads(path.read_text(encoding="utf-8"))
    entries = described(path)
    wanted = {each.name for each in fields(Costs)} - {"rows"}
    assert set(entries) == wanted, set(entries) ^ wanted
    rows = tuple((float(events), float(size)) for events, size in held["rows"]["points"])
    return Costs(**{name: cost.value for name, cost in entries.items()}, rows=rows)


COSTS = _read()
