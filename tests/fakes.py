"""Stand-ins for what tests do not start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agents.metrics import Metrics
from schemas.errors import BadItem, BadRequest
from schemas.records import Interaction, Item, Request, Slate, SlateItem


@dataclass
class FakeService:
    """A worker in memory: a slate is the catalogue without what the user touched; calls raise `failure` if set."""

    metrics: Metrics = field(default_factory=Metrics)
    catalogue: dict[str, Item] = field(default_factory=dict)
    events: list[Interaction] = field(default_factory=list)
    requests: list[tuple[Request, int | None]] = field(default_factory=list)
    is_ready: bool = True
    standing_still: dict[str, float] = field(default_factory=dict)
    failure: Exception | None = None
    release: str = "none"
    refused: dict[str, str] = field(default_factory=dict)

    def _guard(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def recommend(self, request: Request, deadline_ms: int | None = None) -> Slate:
        self._guard()
        self.requests.append((request, deadline_ms))
        hidden = {event.item_id for event in self.events if event.user_id == request.user_id} | set(request.exclude)
        chosen = [item_id for item_id in request.candidates or self.catalogue if item_id not in hidden][: request.k]
        items = tuple(SlateItem(item_id, 1.0 / rank, ("popular",)) for rank, item_id in enumerate(chosen, 1))
        return Slate(request.request_id, request.user_id, items, "none", "default", timings_ms={"total": 1.0})

    def similar(self, item_id: str, k: int) -> Sequence[SlateItem]:
        self._guard()
        if item_id not in self.catalogue:
            raise BadItem("not_found", "there is no such item", "item_id")
        return [SlateItem(other, 0.5, ("content",)) for other in self.catalogue if other != item_id][:k]

    async def user(self, user_id: str) -> Mapping[str, object]:
        self._guard()
        found = [event.item_id for event in self.events if event.user_id == user_id]
        if not found:
            raise BadRequest("not_found", "nothing is known of this person", "user_id")
        return {"user_id": user_id, "events": len(found)}

    async def erase(self, user_id: str) -> Mapping[str, int]:
        self._guard()
        self.events = [event for event in self.events if event.user_id != user_id]
        return {"partition": 0, "offset": len(self.events)}

    async def send_events(self, events: Sequence[Interaction]) -> Sequence[Mapping[str, int]]:
        self._guard()
        first = len(self.events)
        self.events.extend(events)
        return [{"partition": 0, "offset": first + index} for index in range(len(events))]

    async def put_item(self, item: Item) -> None:
        self._guard()
        self.catalogue[item.item_id] = item

    async def delete_item(self, item_id: str) -> None:
        self._guard()
        self.catalogue.pop(item_id, None)

    def item(self, item_id: str) -> Item:
        self._guard()
        if item_id not in self.catalogue:
            raise BadItem("not_found", "there is no such item", "item_id")
        return self.catalogue[item_id]

    def stuck(self) -> Mapping[str, float]:
        return self.standing_still

    async def tables(self, *, digests: bool = False) -> Sequence[Mapping[str, object]]:
        return [{"table": "users", "partition": 0, "role": "owner", "position": 7, **({"hash": "0"} if digests else {})}]

    def ready(self) -> tuple[bool, Mapping[str, object]]:
        return self.is_ready, {} if self.is_ready else {"catalogue": "being read"}

    def render_metrics(self) -> str:
        return self.metrics.render()


@dataclass
class FakePart:
    """A process in memory, as the supervisor sees it; `failure` is raised by the next starts."""

    name: str
    needs: Sequence[str] = ()
    process: int | None = None
    starts: int = 0
    failure: Exception | None = None
    ends_at_once: int | None = None
    order: list[str] = field(default_factory=list)
    status: int | None = None
    words: str = ""

    def pid(self) -> int | None:
        return self.process

    def start(self) -> int | None:
        if self.failure is not None:
            raise self.failure
        self.starts += 1
        self.order.append(self.name)
        started = self.process = 1_000 + self.starts
        if self.ends_at_once is not None:
            self.end(self.ends_at_once)
        return started

    def end(self, status: int | None, words: str = "") -> None:
        """It ends by itself."""
        self.process, self.status, self.words = None, status, words

    def exit_status(self) -> int | None:
        return self.status

    def last_words(self) -> str:
        return self.words
