"""The worker's implementation of the HTTP interface's `Service`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from aiokafka.errors import KafkaError

from agents.broadcast.rules import Rules, book_of
from agents.console import WorkerConsole
from agents.figures import Figures, state_of
from agents.findings import Health
from agents.health.readiness import Readiness
from agents.metrics import Metrics
from agents.operations import WorkerOperations
from agents.partitions.users import UserPartition
from agents.requests.over_kafka import OverKafka
from agents.requests.preview import previewed
from agents.requests.recommend import Recommend
from agents.requests.routing import Others, Routing
from agents.summaries import summary
from agents.web.peers import Peers
from agents.web.protocol import Wanted, always
from models.items.store import ItemStore
from models.pipeline.clock import wall_ms
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.rules.book import RuleBook
from schemas.errors import BadInput, BadItem, BadRequest, NotReady
from schemas.records import Interaction, Item, Request, Slate, SlateItem, UserPage, UserQuery
from schemas.rules import RuleSet, rule_to_json, rules_to_json
from schemas.settings import Settings
from streams.kafka.error_codes import Action, action_of, advice_of, named
from streams.kafka.healing_producer import HealingProducer, Outgoing
from streams.kafka.writes import Writes
from streams.mirror.contract import Mirror

__all__ = ["Owners", "Tables", "View", "WorkerService"]


class Tables(Protocol):
    """Lists the table partitions of this worker."""

    async def __call__(self, *, digests: bool = False) -> Sequence[Mapping[str, object]]:
        """Return one entry for each table partition; with `digests` also a hash, for which it is read in full."""


LIST_MS = 5_000
"Time limit in milliseconds for the owner of a partition to list its users."
SEND_S = 5.0
"Time limit in seconds for the broker to acknowledge records received over HTTP."


@asynccontextmanager
async def _taken() -> AsyncIterator[None]:
    """Limit the time for the broker's acknowledgement, and translate its errors for the sender.

    Raises:
        NotReady: `broker_unavailable`, a temporary failure; `broker_refuses`, an operator must act first.
        BadInput: `too_large` or `rejected`, the record is at fault, and sending it again does not help.
    """
    try:
        async with asyncio.timeout(SEND_S):
            yield
    except TimeoutError as exc:
        message = f"Kafka did not acknowledge within {SEND_S:.0f} s; it may still: sending again with the same ids is safe"
        raise NotReady("broker_unavailable", message) from exc
    except KafkaError as exc:
        action, text = action_of(exc), advice_of(exc)
        if action is Action.REJECT:
            code = "too_large" if named(exc).name in {"MESSAGE_TOO_LARGE", "RECORD_LIST_TOO_LARGE"} else "rejected"
            raise BadInput(code, f"Kafka does not accept this record: {text}") from exc
        if action is Action.REFUSE:
            raise NotReady("broker_refuses", f"Kafka refuses: {text}") from exc
        raise NotReady("broker_unavailable", f"Kafka did not accept all of it ({text}); sending it again is safe") from exc


@dataclass(frozen=True, slots=True)
class View:
    """The parts of a worker that HTTP answers are read from."""

    users: Mapping[int, UserPartition]
    items: ItemStore
    pipeline: CandidatePipeline
    mirror: Mirror
    tables: Tables
    stuck: Callable[[], Mapping[str, float]]
    health: Health
    readiness: Readiness
    rules: Rules
    console: WorkerConsole
    figures: Figures


@dataclass(frozen=True, slots=True)
class Owners:
    """The way to the owners of other partitions."""

    others: Callable[[int], Others]
    "Returns the other workers that hold a partition."
    peers: Peers


class WorkerService:
    """The worker behind `agents.web`: implements `agents.web.protocol.Service`."""

    def __init__(
        self,
        settings: Settings,
        recommend: Recommend,
        routing: Routing,
        over_kafka: OverKafka,
        producer: HealingProducer,
        metrics: Metrics,
        view: View,
        owners: Owners | None = None,
    ) -> None:
        self._settings = settings
        self._recommend = recommend
        self._producer = producer
        self._writes = Writes(settings)
        self._operations = WorkerOperations(settings)
        self._view = view
        self._routing = routing
        self._over_kafka = over_kafka
        self._ask_owner = owners
        self._previewing = asyncio.Lock()
        "Held by the one preview that may be under way, because it passes the queue of requests by."
        self.metrics = metrics

    @property
    def console(self) -> WorkerConsole:
        """What the web page shows of the worker."""
        return self._view.console

    @property
    def operator(self) -> WorkerOperations:
        """What an operator may do from the web page."""
        return self._operations

    def partition_of(self, user_id: str) -> int:
        """Return the partition that holds a user's state, by the default partitioner."""
        return self._recommend.partition_of(user_id)

    def _owned(self, user_id: str) -> UserPartition | None:
        """Return the user's partition; None if another worker owns it. Raises NotReady while it is being restored here."""
        number = self.partition_of(user_id)
        partition = self._view.users.get(number)
        if partition is not None and not partition.state.ready.is_set():
            raise NotReady("not_ready", f"this user's partition {number} is being restored here: try again")
        return partition

    async def recommend(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        """Return a slate from the best rows that can be reached in time; raises RiffleError, the terminal error."""
        return await self._routing.recommend(request, *self._bounds(request, deadline_ms), wanted)

    async def recommend_here(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        """Return a slate to another worker, only from rows that are held here; raises RiffleError, the terminal error."""
        return await self._routing.recommend_here(request, *self._bounds(request, deadline_ms), wanted)

    def _bounds(self, request: Request, deadline_ms: int | None) -> tuple[int, float]:
        """Return the partition of a request's user, and the seconds that an answer may take."""
        return self.partition_of(request.user_id), (deadline_ms or self._settings.deadline_ms) / 1000

    def similar(self, item_id: str, k: int) -> list[SlateItem]:
        """Return the items most similar to this one; raises BadItem `not_found`."""
        if self._view.items.row_of(item_id) < 0:
            raise BadItem("not_found", f"no item {item_id!r}", "item_id")
        return self._view.pipeline.similar(item_id, k)

    def item(self, item_id: str) -> Item:
        """Return a catalogue entry; raises BadItem `not_found`."""
        row = self._view.items.row_of(item_id)
        found = self._view.items.items[row] if row >= 0 else None
        if found is None:
            raise BadItem("not_found", f"no item {item_id!r}", "item_id")
        return found

    async def user(self, user_id: str) -> dict[str, Any]:
        """Return a user's summary; for another worker's user, the last one in the mirror. Raises BadItem `not_found`."""
        partition = self._owned(user_id)
        if partition is None:
            mirrored = await self._view.mirror.get(user_id)
            if mirrored is None:
                raise BadItem(
                    "not_found", f"user {user_id!r} is not mirrored, and has a partition of another worker", "user_id"
                )
            return mirrored
        record = partition.lookup([user_id])[0]
        if record is None:
            raise BadItem("not_found", f"user {user_id!r} is not known", "user_id")
        return {"user_id": user_id, **summary(record, self._view.items), "seen_set": record.seen.facts()}

    async def users(self, partition: int, query: UserQuery) -> UserPage:
        """List users of a partition, from here or from its owner.

        Raises:
            BadRequest: there is no such partition.
            NotReady: the partition is being restored.
            DeadlineExceeded: its owner did not answer within `LIST_MS`.
        """
        count = self._settings.partitions
        if not 0 <= partition < count:
            raise BadRequest("invalid_field", f"partition must lie in 0..{count - 1}, is {partition}", "partition")
        owned = self._view.users.get(partition)
        if owned is not None:
            return await owned.page(query)
        return await self._over_kafka.users(partition, query, LIST_MS / 1000)

    async def send_events(self, events: Sequence[Interaction]) -> list[dict[str, int]]:
        """Produce events, acknowledged by all replicas; returns their tokens in order."""
        return await self._deliver([self._placed(self._writes.event(event), event.user_id) for event in events])

    async def erase(self, user_id: str) -> dict[str, int]:
        """Request the erasure of a user's state; returns the token of that event."""
        self._recommend.recent.forget(user_id)
        return (await self._deliver([self._placed(self._writes.erasure(user_id), user_id)]))[0]

    async def put_item(self, item: Item) -> None:
        """Add or replace a catalogue entry."""
        await self._deliver([self._writes.item(item)])

    async def delete_item(self, item_id: str) -> None:
        """Delete a catalogue entry."""
        await self._deliver([self._writes.deletion(item_id)])

    def _placed(self, record: Outgoing, user_id: str) -> Outgoing:
        return replace(record, partition=self.partition_of(user_id))

    async def _deliver(self, records: Sequence[Outgoing]) -> list[dict[str, int]]:
        async with _taken():
            done = await self._producer.deliver(records)
        return [{"partition": meta.partition, "offset": meta.offset} for meta in done]

    @property
    def release(self) -> str:
        """Name of the serving release, `none` without one."""
        return self._view.pipeline.slot.name

    @property
    def refused(self) -> Mapping[str, str]:
        """Releases that were refused here, with the reason."""
        return self._view.pipeline.slot.refused

    def rules(self) -> dict[str, Any]:
        """Return the serving rule set, with what each rule matches, and why the newest set is refused, if it is."""
        refused = self._view.rules.refused
        book = self._view.pipeline.rules.current
        return {**_described(book or RuleBook(RuleSet(0), self._view.items)), "refused": refused and refused.to_json()}

    async def preview_rules(self, rules: RuleSet, request: Request | None, *, here: bool = False) -> dict[str, Any]:
        """Return what each rule matches and, given a request, its slates with the serving and with these rules.

        The owner of the user's partition answers, unless the answer must come from `here`.

        Raises:
            NotReady: the owner cannot be asked, or the user's partition is being restored.
        """
        book = await book_of(rules, self._view.items)
        if request is None:
            return {**_described(book), "serving": None, "proposed": None}
        partition = self._owned(request.user_id)
        if partition is None:
            number = self.partition_of(request.user_id)
            owner = None if here or self._ask_owner is None else self._ask_owner.others(number).owner
            if owner is None or self._ask_owner is None:
                message = f"another worker has partition {number}, which holds this user, and cannot be asked from here"
                raise NotReady("not_ready", message)
            return await self._ask_owner.peers.preview(owner, rules_to_json(rules), request)
        if self._previewing.locked():
            raise NotReady("busy", "another preview is under way here: try again")
        async with self._previewing:
            serving, proposed = await previewed(self._view.pipeline, partition, request, (None, book))
        return {**_described(book), "serving": serving.to_json(), "proposed": proposed.to_json()}

    def stuck(self) -> Mapping[str, float]:
        """Return the partitions that have waiting work and make no progress, and for how many seconds."""
        return self._view.stuck()

    async def tables(self, *, digests: bool = False) -> Sequence[Mapping[str, object]]:
        """List the table partitions that this worker owns or holds as standby; with `digests` also hashes over their rows."""
        return await self._view.tables(digests=digests)

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Return whether this worker is ready, and the missing parts if not."""
        return self._view.readiness.ready()

    @property
    def warnings(self) -> Mapping[str, str]:
        """Findings that do not prevent answers, by name."""
        return self._view.health.current()

    def render_metrics(self) -> str:
        """Format the metrics in Prometheus' text format."""
        self._view.figures.write()
        return self.metrics.render()


def _described(book: RuleBook) -> dict[str, Any]:
    """Return a rule set as JSON; each rule with its state and the number of items that it matches now."""
    now_ms, found = wall_ms(), rules_to_json(book.rules)
    counts = book.matched(now_ms)
    listed = zip(book.rules.rules, counts, strict=True)
    found["rules"] = [{**rule_to_json(rule), "state": state_of(rule, now_ms), "matches": n} for rule, n in listed]
    found["expired"] = book.expired(now_ms)
    return found
