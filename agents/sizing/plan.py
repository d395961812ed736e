"""The size of a deployment for a load: processes, memory, disks, Kafka, the store, times, and what limits it.

`plan` is a function of the load and the costs alone. More load never needs less. It is a forecast, no guarantee.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from agents.sizing.costs import COSTS, Costs
from agents.sizing.limits import Limit, limits

__all__ = ["Broadcast", "Kafka", "Load", "Plan", "Store", "Times", "Workers", "broadcast", "plan"]

SPARE = 1.5
"Partitions per worker: their number cannot be raised without copying the topics."
LEAST_WORKERS, LEAST_PARTITIONS, LEAST_BROKERS = 2, 4, 3
DAY_S = 86_400.0
MIRROR_DAYS = 7.0
"Days that a summary stays in the store."


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked for.

    users: with a record, whether active or not. items: in the catalogue. events_per_s, requests_per_s: at the busiest time.
    history: events of one user so far, which decide the size of the user's record. days: that Kafka keeps events and
    impressions. standbys: copies of each partition.
    over_http: share of the requests that come over HTTP, which take nothing in Kafka but their impressions.
    """

    users: float
    items: float
    events_per_s: float
    requests_per_s: float
    history: float = 200.0
    days: float = 30.0
    standbys: int = 1
    replication: int = 3
    over_http: float = 1.0


@dataclass(frozen=True, slots=True)
class Workers:
    """The StatefulSet. Cores and bytes are those of one worker."""

    count: int
    partitions: int
    cores: float
    memory_bytes: float
    volume_bytes: float
    busy_cores: float
    "Of the event loop, by events, requests and what all workers read."


@dataclass(frozen=True, slots=True)
class Kafka:
    """Brokers with what they write, read and hold, all replicas and topics together."""

    brokers: int
    write_bytes_per_s: float
    read_bytes_per_s: float
    retained_bytes: float
    replicas: int


@dataclass(frozen=True, slots=True)
class Store:
    """The Redis or Valkey of summaries."""

    bytes: float
    writes_per_s: float


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds."""

    rebalance_s: float
    lost_worker_s: float
    "Until the next owner answers for a lost worker's users from its copy of the rows; others answer meanwhile."
    lost_volume_s: float
    "Until a worker without its volume has its rows again."
    catalogue_s: float
    "To decode the catalogue and index the release, once on a machine."
    mapped_catalogue_s: float
    "The same at a later start, from the shelf."
    statistics_s: float
    "To read the statistics of items at any start."


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer. `limits` are sorted, the worst first; above 1 a limit is exceeded, and the plan cannot work as it stands."""

    load: Load
    workers: Workers
    kafka: Kafka
    store: Store
    times: Times
    limits: tuple[Limit, ...]

    @property
    def fits(self) -> bool:
        """Whether no limit is exceeded."""
        return all(limit.share <= 1.0 for limit in self.limits)


@dataclass(frozen=True, slots=True)
class Broadcast:
    """What every worker reads of all partitions."""

    statistics_per_s: float
    neighbours_per_s: float
    cores: float
    statistics_held: float
    "Records of statistics in their compacted topic, one per item and source partition that had an event of it."


def broadcast(load: Load, partitions: int, costs: Costs) -> Broadcast:
    """What the partitions publish together for all workers, and the cores that each worker spends on reading it."""
    statistics = min(load.events_per_s, partitions * costs.statistics_per_flush / costs.commit_interval_s)
    neighbours = min(load.events_per_s, partitions * costs.neighbours_per_partition_per_s)
    cores = statistics * costs.statistics_record_s + neighbours * costs.neighbours_record_s
    held = min(load.items * partitions, load.events_per_s * load.days * DAY_S)
    return Broadcast(statistics, neighbours, cores, held)


def plan(load: Load, costs: Costs = COSTS) -> Plan:
    """Compute the plan. Numbers below 0 count as 0."""
    load = replace(
        load,
        users=max(load.users, 0.0),
        items=max(load.items, 0.0),
        events_per_s=max(load.events_per_s, 0.0),
        requests_per_s=max(load.requests_per_s, 0.0),
        days=max(load.days, 0.0),
    )
    event = costs.event_s + load.standbys * costs.standby_event_s
    # partitions flush whether or not there are many, so that each costs its share
    per_partition = costs.flush_s / costs.commit_interval_s if load.events_per_s > 0 else 0.0
    request = costs.request_cpu_s(load.items)
    own = load.events_per_s * event + load.requests_per_s * request
    room = costs.own_share - costs.idle_cores - SPARE * per_partition
    count = max(math.ceil(own / room), LEAST_WORKERS)
    partitions = max(math.ceil(count * SPARE), LEAST_PARTITIONS)
    shared = broadcast(load, partitions, costs)
    row = costs.row_bytes(load.history)
    rows = load.users * (1 + load.standbys)
    workers = Workers(
        count,
        partitions,
        cores=2.0,
        memory_bytes=costs.process_bytes + costs.cache_bytes + load.items * costs.item_memory(partitions),
        volume_bytes=rows * row * costs.table_overhead / count + load.items * costs.shelf_item_bytes,
        busy_cores=costs.idle_cores + (own + partitions * per_partition) / count + shared.cores,
    )
    kafka = _kafka(load, workers, shared, row, costs)
    active = min(load.users, load.events_per_s * MIRROR_DAYS * DAY_S)
    store = Store(active * costs.summary_bytes, load.events_per_s)
    times = _times(load, workers, shared, costs)
    found = limits(request if load.requests_per_s else 0.0, workers, shared, store, times, costs)
    return Plan(load, workers, kafka, store, times, found)


def _kafka(load: Load, workers: Workers, shared: Broadcast, row: float, costs: Costs) -> Kafka:
    events = load.events_per_s * costs.event_bytes
    changed = min(load.events_per_s, load.users / costs.commit_interval_s) * row
    lists = shared.statistics_per_s * costs.statistics_record_bytes + shared.neighbours_per_s * costs.statistics_record_bytes
    impressions = load.requests_per_s * costs.impression_bytes
    asked = load.requests_per_s * (1.0 - load.over_http) * costs.request_reply_bytes
    once = events + changed + lists + impressions + asked
    write = load.replication * once
    read = (load.replication - 1) * once + events + changed * load.standbys + lists * workers.count + 2 * asked + impressions
    kept = (events + impressions) * load.days * DAY_S
    compacted = load.users * row + load.items * costs.item_bytes + shared.statistics_held * costs.statistics_record_bytes
    retained = load.replication * (kept + compacted * costs.changelog_overhead)
    # interactions, requests, impressions, covisits, rank, rank-acks and two changelogs, and seven topics of one partition
    replicas = load.replication * (8 * workers.partitions + 7)
    brokers = max(
        LEAST_BROKERS,
        math.ceil(write / costs.broker_write_bytes_per_s_most),
        math.ceil(retained / costs.broker_bytes_most),
        math.ceil(replicas / costs.broker_replicas_most),
    )
    return Kafka(brokers, write, read, retained, replicas)


def _times(load: Load, workers: Workers, shared: Broadcast, costs: Costs) -> Times:
    rebalance = costs.join_s + (workers.count + workers.partitions) * costs.place_s
    records = load.users / workers.count * (1 + load.standbys) * costs.changelog_overhead
    statistics = shared.statistics_held * costs.statistics_record_s
    return Times(
        rebalance_s=rebalance,
        lost_worker_s=costs.session_s + rebalance,
        lost_volume_s=costs.restore_open_s + records * costs.restore_s,
        catalogue_s=load.items * (costs.item_decode_s + costs.item_release_s),
        mapped_catalogue_s=load.items * costs.item_map_s,
        statistics_s=statistics,
    )
