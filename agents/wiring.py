"""The composition root: creates all parts of a worker and connects them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from faust.types import TP

from agents.broadcast.beside import Beside
from agents.broadcast.item_stream import Catalogue
from agents.broadcast.mirroring import Mirroring
from agents.broadcast.releases import Releases
from agents.broadcast.rules import Rules
from agents.broadcast.shelves import Shelves, shelves_dir
from agents.broadcast.trainings import Trainings
from agents.console import Seen, WorkerConsole
from agents.figures import Figures
from agents.findings import Health
from agents.health.archiving import Archiving
from agents.health.broker import BrokerProbe
from agents.health.looks import CovisitTroubles, Misplaced, Reading, RegistryProbe, note_replaced
from agents.health.readiness import Readiness
from agents.health.watch import Watch
from agents.lifecycle import RiffleApp, revoked
from agents.metrics import Metrics
from agents.partitions.assignment import Assignment
from agents.partitions.copies import Copies
from agents.partitions.flushing import Flushing
from agents.partitions.lanes import Lanes
from agents.partitions.ownership import Ownership
from agents.partitions.recovery import Recovery
from agents.parts import Parts
from agents.requests.commits import Commits
from agents.requests.mirrored import Mirrored
from agents.requests.over_kafka import OverKafka
from agents.requests.rank_away import RankingAway
from agents.requests.recommend import SYSTEM, Recommend
from agents.requests.remote import Remote
from agents.requests.routing import Elsewhere, Others, Routing, others
from agents.samples import Samples
from agents.service import Owners, View, WorkerService
from agents.tasks import Tasks
from agents.topic_changes import TopicChanges
from agents.web.access import Gate, Page
from agents.web.address import reachable
from agents.web.caller import Caller
from agents.web.page_token import page_token
from agents.web.peers import Peers
from agents.web.server_tls import server_context
from models.items.history import ItemHistory
from models.items.store import ItemStore
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from schemas.settings import Settings
from streams.kafka import connect
from streams.kafka.assignor import NOBODY, HoldingAssignor
from streams.kafka.broadcast import BroadcastReader
from streams.kafka.chunks import Chunk
from streams.kafka.healing_producer import HealingProducer
from streams.kafka.native import clients
from streams.kafka.native.producer import NativeProducer
from streams.kafka.topic_watch import TopicWatch
from streams.mirror.stores import mirror_of
from streams.tracing import tracing_of
from streams.watchdog import Watchdog

__all__ = ["create_app"]

log = logging.getLogger(__name__)


def assemble(settings: Settings, app: RiffleApp) -> Parts:
    """Create all parts."""
    crash, metrics, health = app.stop_for, Metrics(), Health()
    items, slot, registry = ItemStore(settings.partitions), ModelSlot(), connect.registry(settings)
    pipeline = CandidatePipeline(items, slot=slot)
    replies = NativeProducer(settings.kafka, clients.REPLIES)
    events = HealingProducer(partial(connect.producer, settings.kafka, connect.OUTPUTS), note_replaced(metrics, health))

    ownership, due = Ownership(settings, items, metrics, registry), asyncio.Event()
    assignment = Assignment(settings, app, ownership, health, due, crash)
    recovery = Recovery(ownership, metrics, assignment.taking, lambda: assignment.generation, assignment.rejoin, due)
    lanes = Lanes(assignment, recovery, metrics, crash)
    tasks = NativeProducer(settings.kafka, clients.RANK_TASKS)
    remote = Remote(settings, tasks, metrics, SYSTEM)
    used = remote if settings.ranking == "remote" else None
    tracing = tracing_of(settings, "riffle-worker")
    history = ItemHistory(items)
    recommend = Recommend(
        settings,
        pipeline,
        ownership.users,
        replies,
        metrics,
        registry,
        outputs=events,
        remote=used,
        tracing=tracing,
        shown=history.show,
    )
    commits = Commits(settings, app, recommend, metrics, health)
    mirror = mirror_of(settings)
    mirroring = Mirroring(ownership.users, items, mirror, metrics, lambda: lanes.busy_chunks)
    afterwards = (mirroring.take, commits.commit)
    flushing = Flushing(app, ownership, assignment, lanes, recovery, crash, settings.commit_interval_s, afterwards)

    shelves = Shelves(shelves_dir(settings), items, slot, metrics, settings.shelf_items)
    beside = Beside(settings.releases_dir, items, slot)
    releases = Releases(settings, slot, items, metrics, shelves, beside.alone)
    rules = Rules(pipeline.rules, items, metrics)
    reader = _reader(settings, Catalogue(items, metrics, registry), releases, rules, health)
    trainings = Trainings(metrics)
    changes = TopicChanges(settings, app, ownership, recovery, reader, commits, health)
    topic_watch = TopicWatch(settings, health.set, changes.made_anew, ownership.sources, changes.begun)

    archiving, broker = Archiving(settings, registry, metrics, health), BrokerProbe(settings)
    reading = Reading(app, metrics, health)
    readiness, watchdog = Readiness(settings, ownership.users, broker, health), Watchdog(settings.stuck_s)
    looks: list[Callable[[], Awaitable[None]]] = [archiving.look, recovery.look, reading.look]
    looks += [CovisitTroubles(ownership, health).look, Misplaced(settings, metrics, health).look]
    if used is not None:
        looks.append(RankingAway(used, health).look)
    if registry is not None and (probe := connect.registry(settings)) is not None:
        looks.append(RegistryProbe(registry, probe, health).look)
    watch = Watch(settings, app, ownership, watchdog, metrics, crash, looks)
    peers, over_kafka = Peers(metrics, Caller(settings.http)), OverKafka(settings, tracing)

    def holders(partition: int) -> Others:
        return others(app.holding.holders.get(partition, NOBODY), app.holding.address, reachable)

    routing = Routing(
        recommend,
        ownership.users,
        Copies(ownership.users, ownership.standby, items),
        Elsewhere(holders, peers, over_kafka.ask, Mirrored(mirror).find),
        metrics,
    )
    samples = Samples(metrics)
    watched = Seen(
        ownership.users,
        lambda: ownership.standby.numbers,
        items,
        pipeline,
        readiness,
        health,
        samples,
        recommend.recent,
        recommend.partition_of,
        holders,
        peers,
        beside,
        lambda: releases.champion,
        trainings.listed,
        history,
    )
    console = WorkerConsole(settings, metrics, watched)
    figures = Figures(metrics, ownership.users, items, pipeline, readiness, health, lambda: recommend.waiting)
    seen = View(
        ownership.users, items, pipeline, mirror, ownership.tables, watchdog.stuck, health, readiness, rules, console, figures
    )
    service = WorkerService(settings, recommend, routing, over_kafka, events, metrics, seen, Owners(holders, peers))
    return Parts(
        settings=settings,
        crash=crash,
        tasks=Tasks(crash),
        metrics=metrics,
        ownership=ownership,
        assignment=assignment,
        recovery=recovery,
        lanes=lanes,
        flushing=flushing,
        topic_changes=changes,
        topic_watch=topic_watch,
        replies=replies,
        events=events,
        remote=remote,
        rank_tasks=tasks,
        recommend=recommend,
        commits=commits,
        reader=reader,
        trainings=_progress(settings, trainings, health),
        shelves=shelves,
        releases=releases,
        rules=rules,
        mirror=mirror,
        mirroring=mirroring,
        peers=peers,
        over_kafka=over_kafka,
        archiving=archiving,
        broker=broker,
        reading=reading,
        readiness=readiness,
        watch=watch,
        samples=samples,
        history=history,
        service=service,
    )


def _reader(settings: Settings, catalogue: Catalogue, releases: Releases, rules: Rules, health: Health) -> BroadcastReader:
    handlers = {
        "items": catalogue.on_items,
        "item-vectors": catalogue.on_vectors,
        "item-stats": catalogue.on_statistics,
        "neighbours": catalogue.on_neighbours,
        "models": releases.on_models,
        "rules": rules.on_rules,
    }
    return BroadcastReader(settings, handlers, health.set)


def _progress(settings: Settings, trainings: Trainings, health: Health) -> BroadcastReader:
    handlers = {"trainings": trainings.on_trainings}
    what = "the progress of trainings"
    return BroadcastReader(settings, handlers, health.set, profile=connect.TRAININGS, name="trainings", what=what)


def create_app(settings: Settings) -> RiffleApp:
    """Create the worker that `settings` describe, with its agents registered."""
    app: RiffleApp = RiffleApp.create(settings)
    parts = app.parts = assemble(settings, app)
    app.gate = Gate(settings.http, parts.metrics, Page.of(settings, page_token(settings)))
    app.conf.web_ssl_context = server_context(settings.http, parts.metrics)
    app.holding = HoldingAssignor(parts.ownership.held, settings.standbys, settings.partitions)
    app.on_reading_failed = parts.reading.failed

    def take_in(chunk: Chunk) -> None:
        try:
            parts.recommend.on_chunk(chunk)
        except Exception:
            log.exception("requests at %s-%d up to %d failed", chunk.topic, chunk.partition, chunk.last_offset)
            parts.metrics.request_chunks_failed.add()

    async def requests(stream: Any) -> None:
        # it makes the group assign the topic's partitions; their records come by `app.prompt`, sooner than by a stream
        async for chunk in stream:
            take_in(chunk)

    async def features(stream: Any) -> None:
        async for chunk in stream:
            await parts.lanes.apply(parts.ownership.users, chunk)

    async def neighbours(stream: Any) -> None:
        async for chunk in stream:
            await parts.lanes.apply(parts.ownership.covisits, chunk)

    async def on_assigned(_app: Any, assigned: set[TP], **_kwargs: Any) -> None:
        await parts.assignment.assigned(assigned)

    async def on_revoked(_app: Any, gone: set[TP], **_kwargs: Any) -> None:
        await revoked(parts, gone)

    for short, name, agent in (
        ("interactions", "riffle.features", features),
        ("covisits", "riffle.neighbours", neighbours),
        ("requests", "riffle.recommend", requests),
    ):
        topic = app.topic(settings.topic(short), key_serializer="raw", value_serializer="raw")
        app.agent(topic, name=name)(agent)
    app.prompt = {settings.topic("requests"): take_in}
    app.on_partitions_assigned.connect(on_assigned)
    app.on_partitions_revoked.connect(on_revoked)
    return app
