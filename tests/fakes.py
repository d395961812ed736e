"""Fakes for services that tests do not start."""

from __future__ import annotations

import contextlib
import json
import ssl
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

from agents.metrics import Metrics
from agents.web.protocol import Service, Wanted, always
from schemas.codec import schema_text
from schemas.errors import BadItem, BadRequest
from schemas.records import Interaction, Item, Request, Slate, SlateItem, UserPage, UserQuery
from schemas.rules import RuleSet, rules_to_json
from streams.embedded.process import Steps

T = TypeVar("T")
UNHEARD_OF = "unheard-of"
"A topic that no fake broker has."


class KnowsTopics:
    """The part of a producer that looks topics up: it knows all but `UNHEARD_OF`."""

    def knows(self, topic: str) -> bool:
        return topic != UNHEARD_OF

    async def look_up(self, topic: str) -> bool:
        return self.knows(topic)

    async def forget(self, topic: str) -> None: ...


@dataclass
class FakeConsole:
    """What a page sees of a `FakeService`."""

    service: FakeService

    def live(self, since: int) -> Mapping[str, object]:
        return {"worker": {"ready": self.service.is_ready}, "samples": {"next": since + 1}}

    def pipeline(self) -> Mapping[str, object]:
        return {"requests": len(self.service.requests)}

    def recent(self, most: int) -> Sequence[Mapping[str, object]]:
        return [{"user_id": request.user_id} for request, _ in self.service.requests[::-1][:most]]

    async def explain(self, request: Request, release: str | None = None, *, here: bool = False) -> Mapping[str, object]:
        slate = (await self.service.recommend(request)).to_json()
        return {"slate": {**slate, "release": release or slate["release"]}, "trace": {}, "waited_ms": 0.0}

    def search(self, text: str, most: int) -> Sequence[Mapping[str, object]]:
        found = [item for item in self.service.catalogue.values() if text in item.title]
        return [{"item_id": item.item_id} for item in found[:most]]

    def cards(self, item_ids: Sequence[str]) -> Sequence[Mapping[str, object]]:
        return [{"item_id": item_id} for item_id in item_ids if item_id in self.service.catalogue]

    def history(self, item_id: str, per: str) -> Mapping[str, object]:
        self.service.item(item_id)
        return {"item_id": item_id, "per": per}

    def champion(self) -> str:
        return self.service.operator.serving[-1]

    def trainings(self) -> Sequence[Mapping[str, object]]:
        return []

    async def releases(self) -> Sequence[Mapping[str, object]]:
        return []


@dataclass
class FakeOperator:
    """Dead letters and releases of a `FakeService`: releases are accepted, unless their name begins with `bad`."""

    service: FakeService
    serving: list[str] = field(default_factory=lambda: ["none"])
    replayed: list[int] = field(default_factory=list)

    async def letters(self, most: int, code: str) -> Mapping[str, object]:
        return {"scanned": 10, "codes": {"not_json": 1}, "letters": [{"letter": 7, "code": "not_json"}][:most]}

    async def replay(self, letters: Sequence[int], code: str) -> Mapping[str, int]:
        self.replayed.extend(letters or [7])
        return {"sent": len(letters or [7])}

    def _check(self, expected: str | None) -> None:
        if expected not in {None, self.serving[-1]}:
            raise BadRequest("champion_changed", f"the champion is {self.serving[-1]}", "expected")

    async def promote(self, name: str, expected: str | None = None) -> Mapping[str, object]:
        self._check(expected)
        if name.startswith("bad"):
            raise BadRequest("release_refused", f"the gate refused {name}", "name")
        self.serving.append(name)
        return {"champion": name, "previous": self.serving[-2]}

    async def roll_back(self, expected: str | None = None) -> Mapping[str, object]:
        self._check(expected)
        self.serving.append(self.serving[-2] if len(self.serving) > 1 else "none")
        return {"champion": self.serving[-1], "previous": self.serving[-2]}


@dataclass
class FakeService:
    """A worker in memory: a slate is the catalogue without what the user touched; calls raise `failure` if set."""

    metrics: Metrics = field(default_factory=Metrics)
    catalogue: dict[str, Item] = field(default_factory=dict)
    events: list[Interaction] = field(default_factory=list)
    requests: list[tuple[Request, int | None]] = field(default_factory=list)
    is_ready: bool = True
    warned: Mapping[str, str] = field(default_factory=dict)
    standing_still: dict[str, float] = field(default_factory=dict)
    failure: Exception | None = None
    release: str = "none"
    refused: dict[str, str] = field(default_factory=dict)
    serving_rules: RuleSet = field(default_factory=lambda: RuleSet(0))

    _operator: FakeOperator | None = None

    @property
    def console(self) -> FakeConsole:
        return FakeConsole(self)

    @property
    def operator(self) -> FakeOperator:
        if self._operator is None:
            self._operator = FakeOperator(self)
        return self._operator

    def _guard(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def recommend(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        self._guard()
        self.requests.append((request, deadline_ms))
        hidden = {event.item_id for event in self.events if event.user_id == request.user_id} | set(request.exclude)
        chosen = [item_id for item_id in request.candidates or self.catalogue if item_id not in hidden][: request.k]
        items = tuple(SlateItem(item_id, 1.0 / rank, ("popular",)) for rank, item_id in enumerate(chosen, 1))
        return Slate(request.request_id, request.user_id, items, "none", "default", timings_ms={"total": 1.0})

    async def recommend_here(self, request: Request, deadline_ms: int | None = None, wanted: Wanted = always) -> Slate:
        return await self.recommend(request, deadline_ms, wanted)

    def similar(self, item_id: str, k: int) -> Sequence[SlateItem]:
        self._guard()
        if item_id not in self.catalogue:
            raise BadItem("not_found", "there is no such item", "item_id")
        return [SlateItem(other, 0.5, ("content",)) for other in self.catalogue if other != item_id][:k]

    async def user(self, user_id: str) -> Mapping[str, object]:
        self._guard()
        found = [event.item_id for event in self.events if event.user_id == user_id]
        if not found:
            raise BadRequest("not_found", "this user is not known", "user_id")
        return {"user_id": user_id, "events": len(found)}

    async def users(self, partition: int, query: UserQuery) -> UserPage:
        self._guard()
        if partition != 0:
            raise BadRequest("invalid_field", "there is one partition", "partition")
        known = sorted({event.user_id for event in self.events}, key=str.encode)
        left = [user for user in known if user.encode() > query.after.encode()]
        found = tuple(left[: query.limit])
        return UserPage(0, 1, found, found[-1] if len(left) > query.limit else None)

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

    @property
    def warnings(self) -> Mapping[str, str]:
        return self.warned

    def rules(self) -> Mapping[str, object]:
        self._guard()
        return {**rules_to_json(self.serving_rules), "expired": 0, "refused": None}

    async def preview_rules(self, rules: RuleSet, request: Request | None, *, here: bool = False) -> Mapping[str, object]:
        self._guard()
        slate = None if request is None else (await self.recommend(request)).to_json()
        return {**rules_to_json(rules), "expired": 0, "serving": slate, "proposed": slate}

    def stuck(self) -> Mapping[str, float]:
        return self.standing_still

    async def tables(self, *, digests: bool = False) -> Sequence[Mapping[str, object]]:
        return [{"table": "users", "partition": 0, "role": "owner", "position": 7, **({"hash": "0"} if digests else {})}]

    def ready(self) -> tuple[bool, Mapping[str, object]]:
        return self.is_ready, {} if self.is_ready else {"catalogue": "being read"}

    def render_metrics(self) -> str:
        return self.metrics.render()


def checked(service: FakeService) -> Service:
    """The fake as the interface sees it: mypy compares the two."""
    return service


@dataclass
class FakeRegistry:
    """A registry that knows at once: `schemas` by id, and their names' ids. An exception among them is raised."""

    schemas: dict[int, str | Exception] = field(default_factory=dict)
    names: dict[str, int | Exception] = field(default_factory=dict)

    @classmethod
    def of(cls, *names: str) -> FakeRegistry:
        """The current schemas of these names, as 1, 2, …"""
        ids = dict(zip(names, range(1, len(names) + 1), strict=True))
        return cls({n: schema_text(name) for name, n in ids.items()}, dict(ids))

    def __hash__(self) -> int:
        return id(self)

    def id_of(self, name: str) -> int:
        return _raised(self.names.get(name, KeyError(name)))

    def schema_of(self, schema_id: int) -> str:
        return _raised(self.schemas.get(schema_id, KeyError(schema_id)))

    def trouble(self) -> str:
        return ""

    async def ready(self, wanted: Collection[int | str], within_s: float = 0.0) -> None:
        """Nothing to wait for."""

    async def answered(self, wanted: int | str) -> None:
        """Nothing to wait for."""


def _raised(answer: T | Exception) -> T:
    if isinstance(answer, Exception):
        raise answer
    return answer


@dataclass
class RegistryServer:
    """A schema registry over HTTP on loopback that answers as `mood` says. Every id is its schema's place in `schemas`."""

    schemas: list[str] = field(default_factory=lambda: [schema_text(name) for name in ("interaction", "item", "request")])
    mood: str = "sound"
    "`sound`, `html`, `odd`, `list`, `huge`, `hang`, `drip`, `silent`, or a status and, after a blank, the body."
    url: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    "Requests by path."
    logins: set[str] = field(default_factory=set)
    released: threading.Event = field(default_factory=threading.Event)
    "Ends what hangs."


@contextlib.contextmanager
def registry_server(context: ssl.SSLContext | None = None, **given: object) -> Iterator[RegistryServer]:
    """A running `RegistryServer`, over TLS with a `context`."""
    state = RegistryServer(**given)  # type: ignore[arg-type]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"

        def log_message(self, *said: object) -> None:
            """Nothing."""

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", 0))
            self.answer(json.loads(self.rfile.read(size))["schema"])

        def do_GET(self) -> None:
            self.answer(None)

        def answer(self, registered: str | None) -> None:
            state.calls[self.path] += 1
            state.logins.add(self.headers.get("Authorization", ""))
            with contextlib.suppress(OSError):
                self.say(state.mood, registered)

        def say(self, mood: str, registered: str | None) -> None:
            status, _, body = mood.partition(" ")
            if mood == "sound":
                status, body = "200", self.sound(registered)
            elif mood == "html":
                status, body = "200", "<html>It works!</html>"
            elif mood == "odd":
                status, body = "200", json.dumps({"schema": 5, "id": "one"})
            elif mood == "list":
                status, body = "200", "[]"
            elif mood == "huge":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Length: 100000000000\r\n\r\n{")
                return
            elif mood == "hang":
                state.released.wait(60)
                return
            elif mood == "drip":
                self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Long: ")
                while not state.released.wait(0.01):
                    self.wfile.write(b"x")
                return
            if not status.isdigit():
                return  # the connection ends without a response
            self.send_response(int(status))
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def sound(self, registered: str | None) -> str:
            if registered is not None:
                if registered not in state.schemas:
                    state.schemas.append(registered)
                return json.dumps({"id": state.schemas.index(registered) + 1})
            number = int(self.path.rpartition("/")[2].partition("?")[0])
            if not 0 < number <= len(state.schemas):
                self.say('404 {"error_code": 40403, "message": "Schema not found"}', None)
                raise OSError("said")
            return json.dumps({"schema": state.schemas[number - 1]})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    state.url = f"{'https' if context else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


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
    answer: bool | None = None
    waits: Sequence[str] = ()

    def pid(self) -> int | None:
        return self.process

    def answers(self) -> bool | None:
        return self.answer

    def start(self) -> Steps[int | None]:
        yield from self.waits
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
