"""A secured broker with an authorizer, a user for each worker, and a shop that is fed and asked as its clients would."""

from __future__ import annotations

import asyncio
import shlex
import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from confluent_kafka.admin import AclBindingFilter as Filter
from conftest import WorkerProcess, free_port
from secured_broker import Secured, add_user, secured_broker

from agents.cli.topics import topics
from agents.web.page_token import page_token
from schemas.records import Interaction, Item
from schemas.settings import Settings
from streams.kafka.client import RiffleClient
from streams.kafka.dead_letters import read_letters
from streams.kafka.rights import OPTIONS, Right
from streams.kafka.topics import ensure_topics

__all__ = ["CODES", "PEOPLE", "WITHIN_S", "Guarded", "guarded_broker"]

AUTHORIZER = """
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=false
connections.max.reauth.ms=600000
"""
"Clients in plain text, the tests' own, may do everything; those that log in may do what they were given."
WITHIN_S = 30.0
KINDS = {"topic": ResourceType.TOPIC, "group": ResourceType.GROUP, "transactional-id": ResourceType.TRANSACTIONAL_ID}
CODES = {
    "topic": "TOPIC_AUTHORIZATION_FAILED",
    "group": "GROUP_AUTHORIZATION_FAILED",
    "transactional-id": "TRANSACTIONAL_ID_AUTHORIZATION_FAILED",
}
"Names of the broker's refusals."
PEOPLE = [f"u{n}" for n in range(8)]


def printed(settings: Settings, role: str, principal: str) -> list[Right]:
    """Return the rights that `riffle topics acls` prints, read from the printed commands."""
    done = CliRunner().invoke(topics, ["acls", "--role", role, "--principal", principal], env=settings.environment())
    assert done.exit_code == 0, done.output
    found = []
    for command in done.output.splitlines():
        parts = shlex.split(command)
        assert parts[parts.index("--allow-principal") + 1] == principal
        kind, name = next((kind, parts[parts.index(option) + 1]) for kind, option in OPTIONS.items() if option in parts)
        operations = [parts[at + 1] for at, part in enumerate(parts) if part == "--operation"]
        found += [Right(kind, name, operation, "--resource-pattern-type" in parts) for operation in operations]
    return found


@dataclass
class Guarded:
    """A worker that logs in as a user of its own, with topics of its own."""

    broker: Secured
    home: Path
    role: str = "worker"
    name: str = field(default_factory=lambda: f"user{uuid.uuid4().hex[:8]}")
    sent: int = 0

    def __post_init__(self) -> None:
        by = self.broker.by("SCRAM-SHA-512", self.home)
        own: dict[str, Any] = {"topic_prefix": f"{self.name}.", "app_id": self.name, "kafka_username": self.name}
        own |= {"partitions": 2, "web_port": free_port(), "session_timeout_s": 6.0, "instance": "one"}
        self.settings = replace(by, **own)
        self.plain = replace(
            Settings(home=self.home),
            bootstrap=self.broker.settings.bootstrap_servers,
            topic_prefix=self.settings.topic_prefix,
            partitions=self.settings.partitions,
        ).resolved()
        self.worker = WorkerProcess(self.settings)
        self._admin = AdminClient({"bootstrap.servers": self.broker.settings.bootstrap_servers})
        add_user(self.broker.settings, self.name)
        self.rights = printed(self.settings, self.role, f"User:{self.name}")

    async def prepare(self, missing: Collection[Right] = ()) -> None:
        """Create the topics, and give the user the rights but those that are missing."""
        await ensure_topics(self.plain)
        await asyncio.to_thread(self.give, [right for right in self.rights if right not in missing])

    def _entry(self, right: Right, kind: Any) -> Any:
        pattern = ResourcePatternType.PREFIXED if right.prefixed else ResourcePatternType.LITERAL
        operation = AclOperation[right.operation.upper()]
        return kind(KINDS[right.kind], right.name, pattern, f"User:{self.name}", "*", operation, AclPermissionType.ALLOW)

    def give(self, rights: Collection[Right]) -> None:
        """Give the user rights."""
        for done in self._admin.create_acls([self._entry(right, AclBinding) for right in rights]).values():
            done.result(10)

    def take(self, rights: Collection[Right]) -> None:
        """Take rights away."""
        for done in self._admin.delete_acls([self._entry(right, Filter) for right in rights]).values():
            assert done.result(10)

    def right(self, kind: str, name: str, operation: str) -> Right:
        """Return the printed right on a topic by its short name, a group or ids of transactions."""
        full = self.settings.topic(name) if kind == "topic" else name
        (found,) = [one for one in self.rights if (one.kind, one.name, one.operation) == (kind, full, operation)]
        return found

    async def feed(self) -> None:
        """Send one more event of each person."""
        n, self.sent = self.sent, self.sent + 1
        async with RiffleClient(self.plain) as client:
            if n == 0:
                await asyncio.gather(*(client.put_item(Item(f"i{m}", f"thing {m}")) for m in range(30)))
            await client.send_events([Interaction(f"e{n}-{who}", who, f"i{n % 20}", 1_700_000_000_000 + n) for who in PEOPLE])

    async def feed_bad(self) -> None:
        """Send an event that becomes a dead letter."""
        producer = AIOKafkaProducer(bootstrap_servers=self.plain.bootstrap_servers)
        await producer.start()
        try:
            headers = [("content-type", b"application/json")]
            await producer.send_and_wait(self.plain.topic("interactions"), b"{", key=PEOPLE[0].encode(), headers=headers)
        finally:
            await producer.stop()

    async def letters(self) -> int:
        """Return the number of dead letters."""
        return len([letter async for letter in read_letters(self.plain)])

    async def get(self, path: str) -> tuple[int, Any]:
        """Return the status and the body of an answer of the worker; 0 if there is none."""
        try:
            timeout = aiohttp.ClientTimeout(total=5)
            async with aiohttp.ClientSession(timeout=timeout) as session, session.get(self.settings.web + path) as response:
                return response.status, await response.json()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, None

    async def as_operator(self, method: str, path: str) -> tuple[int, Any]:
        """Return the status and the body of an answer to the page of the worker."""
        headers = {"Authorization": f"Bearer {page_token(self.settings)}"}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.request(method, self.settings.web + path, json={} if method == "POST" else None) as response,
        ):
            return response.status, await response.json()

    async def missing(self) -> str:
        """Describe what is not served yet of all that was sent; empty if everything is: users, their events, and slates."""
        listed: list[str] = []
        for partition in range(self.settings.partitions):
            status, page = await self.get(f"/v1/users?partition={partition}")
            if status != 200:
                return f"users: {status} {page}"
            listed += page["users"]
        if sorted(listed) != PEOPLE:
            return f"users: {listed}"
        for who in PEOPLE:
            status, user = await self.get(f"/v1/users/{who}")
            if status != 200 or user["events"] != self.sent:
                return f"{who}: {status} {user and user.get('events')} of {self.sent} events"
            status, slate = await self.get(f"/v1/recommend/{who}?k=3&deadline_ms=2000")
            if status != 200 or len(slate["items"]) != 3 or slate["degraded"]:
                return f"slate of {who}: {status} {slate}"
        try:
            async with RiffleClient(self.plain) as client:
                slate = await client.ask({"user_id": PEOPLE[0], "k": 3}, 2_000)
        except Exception as exc:
            return f"over Kafka: {exc!r}"
        return "" if len(slate.get("items", ())) == 3 else f"over Kafka: {slate}"

    async def serves(self, within_s: float = WITHIN_S) -> None:
        """Wait until everything that was sent is served."""
        left = "not asked yet"
        try:
            async with asyncio.timeout(within_s):
                while left := await self.missing():  # noqa: ASYNC110 - another process causes the change
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"not served: {left}\n{await self.get('/readyz')}\n{self.log()[-4000:]}") from None

    def log(self, since: int = 0) -> str:
        """Return the worker's log, from a position on."""
        return self.worker.log.read_text()[since:]

    async def refusal(self, code: str, about: str, since: int = 0, within_s: float = WITHIN_S) -> str:
        """Use everything until a line of the log names a refusal with `code` and what it is `about`; returns the line."""
        try:
            async with asyncio.timeout(within_s):
                while True:
                    await self.missing()
                    if found := next((line for line in self.log(since).splitlines() if code in line and about in line), ""):
                        return found
                    await asyncio.sleep(0.2)
        except TimeoutError:
            raise AssertionError(f"{code} about {about} is not named:\n{self.log(since)[-4000:]}") from None


@contextmanager
def guarded_broker(stack: Settings, folder: Path) -> Iterator[Secured]:
    """Run a broker that admits by SCRAM over TLS, and allows what its access control lists say."""
    with secured_broker(stack, folder, AUTHORIZER) as made:
        yield made
