"""The parts of a worker."""

from __future__ import annotations

from dataclasses import dataclass

from agents.broadcast.mirroring import Mirroring
from agents.broadcast.releases import Releases
from agents.broadcast.rules import Rules
from agents.broadcast.shelves import Shelves
from agents.health.archiving import Archiving
from agents.health.broker import BrokerProbe
from agents.health.looks import Reading
from agents.health.readiness import Readiness
from agents.health.watch import Watch
from agents.metrics import Metrics
from agents.partitions.assignment import Assignment
from agents.partitions.flushing import Flushing
from agents.partitions.lanes import Lanes
from agents.partitions.ownership import Ownership
from agents.partitions.recovery import Recovery
from agents.requests.commits import Commits
from agents.requests.over_kafka import OverKafka
from agents.requests.recommend import Recommend
from agents.requests.remote import Remote
from agents.samples import Samples
from agents.service import WorkerService
from agents.tasks import Crash, Tasks
from agents.topic_changes import TopicChanges
from agents.web.peers import Peers
from models.items.history import ItemHistory
from schemas.settings import Settings
from streams.kafka.broadcast import BroadcastReader
from streams.kafka.healing_producer import HealingProducer
from streams.kafka.native.producer import NativeProducer
from streams.kafka.topic_watch import TopicWatch
from streams.mirror.contract import Mirror

__all__ = ["Parts"]


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a worker. No part connects to anything before `agents.lifecycle` starts it."""

    settings: Settings
    crash: Crash
    tasks: Tasks
    metrics: Metrics
    ownership: Ownership
    assignment: Assignment
    recovery: Recovery
    lanes: Lanes
    flushing: Flushing
    topic_changes: TopicChanges
    topic_watch: TopicWatch
    replies: NativeProducer
    events: HealingProducer
    remote: Remote
    "Hands requests over to ranking processes; used only if `settings.ranking` is `remote`, as `rank_tasks` is."
    rank_tasks: NativeProducer
    recommend: Recommend
    commits: Commits
    reader: BroadcastReader
    trainings: BroadcastReader
    "Reads the progress of trainings, which nothing waits for."
    shelves: Shelves
    releases: Releases
    rules: Rules
    mirror: Mirror
    mirroring: Mirroring
    peers: Peers
    over_kafka: OverKafka
    archiving: Archiving
    broker: BrokerProbe
    reading: Reading
    readiness: Readiness
    watch: Watch
    samples: Samples
    history: ItemHistory
    service: WorkerService
