"""What limits a deployment: how far each limit is used by a plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from agents.sizing.costs import Costs

__all__ = ["Limit", "limits"]


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit.

    used, most: in `unit`. remedy: what an operator can do, or what Riffle lacks.
    """

    name: str
    used: float
    most: float
    unit: str
    remedy: str

    @property
    def share(self) -> float:
        """Used part of the limit; above 1 it is exceeded."""
        return self.used / self.most


class _Workers(Protocol):
    @property
    def count(self) -> int: ...
    @property
    def memory_bytes(self) -> float: ...


class _Broadcast(Protocol):
    @property
    def cores(self) -> float: ...
    @property
    def statistics_per_s(self) -> float: ...


class _Store(Protocol):
    @property
    def bytes(self) -> float: ...
    @property
    def writes_per_s(self) -> float: ...


class _Times(Protocol):
    @property
    def rebalance_s(self) -> float: ...
    @property
    def lost_volume_s(self) -> float: ...
    @property
    def catalogue_s(self) -> float: ...
    @property
    def statistics_s(self) -> float: ...


def limits(
    request_s: float,
    workers: _Workers,
    shared: _Broadcast,
    store: _Store,
    times: _Times,
    costs: Costs,
) -> tuple[Limit, ...]:
    """The limits of a plan, the most used first. `request_s`: core seconds of one request; 0 if there are none."""
    sent = shared.statistics_per_s * costs.statistics_record_bytes * workers.count
    found = [
        Limit(
            "item statistics, read by every worker",
            shared.cores,
            costs.broadcast_share,
            "cores per worker",
            "none yet: each worker reads what all partitions publish; sums over partitions would have to be made once",
        ),
        Limit(
            "item statistics, sent by one partition's leader",
            sent,
            costs.partition_read_bytes_per_s_most,
            "bytes per s",
            "none yet: the topic has one partition, which every worker reads",
        ),
        Limit(
            "memory of a worker",
            workers.memory_bytes,
            costs.pod_bytes_most,
            "bytes",
            "fewer partitions; none yet for large catalogues: each worker holds a column of statistics per item and partition",
        ),
        Limit(
            "item statistics, read at a start",
            times.statistics_s,
            costs.start_s_most,
            "s",
            "fewer partitions; none yet: the topic holds a record per item and source partition",
        ),
        Limit(
            "catalogue, decoded at a machine's first start",
            times.catalogue_s,
            costs.start_s_most,
            "s",
            "copy RIFFLE_CACHE/catalogue to new machines, and raise worker.startupSeconds",
        ),
        Limit(
            "processor time of one request",
            request_s,
            costs.request_s_most,
            "core s",
            "a longer deadline, or fewer items per index: no worker holds only a part of the catalogue",
        ),
        Limit(
            "rows of a lost volume",
            times.lost_volume_s,
            costs.recovery_s_most,
            "s",
            "more workers, so that each holds fewer users; standbys answer meanwhile",
        ),
        Limit("rebalance", times.rebalance_s, costs.rebalance_s_most, "s", "fewer and larger workers"),
        Limit(
            "summaries written to one store",
            store.writes_per_s,
            costs.store_writes_per_s_most,
            "writes per s",
            "none yet: the mirror does not divide users among several stores",
        ),
        Limit(
            "summaries held by one store",
            store.bytes,
            costs.store_bytes_most,
            "bytes",
            "a larger node; evicting: summaries serve only while a user's owner and its copies are away",
        ),
    ]
    return tuple(sorted(found, key=lambda limit: -limit.share))
