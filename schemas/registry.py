"""Schema registry access through confluent-kafka's client, beside whoever needs an answer.

No call here waits for the registry: what is not known yet is asked for in a thread of its own, and `ready` waits for it for a
bounded time. A registry that is away, slow or broken costs the records that need it, and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

import httpx
from confluent_kafka.schema_registry import AsyncSchemaRegistryClient, Schema
from confluent_kafka.schema_registry.error import SchemaRegistryError

from schemas.codec import schema_text
from schemas.errors import ConfigError, NotReady, RiffleError

__all__ = ["ConfluentRegistry"]

ATTEMPT_S = 2.0
"Seconds that the registry has for one answer, from the connection to its last byte."
WAIT_S = 5.0
"Seconds that records wait for a schema which is asked for the first time, while the registry is not known to be in trouble."
FIRST_RETRY_S, LAST_RETRY_S = 0.25, 30.0
"Seconds to the next attempt after a failure; doubled up to the latter."
UNKNOWN_S = 10.0
"Seconds for which an id that the registry does not know is not asked for again."
AT_ONCE, MOST_ASKED, MOST_UNKNOWN = 4, 256, 4_096
"Attempts under way, ids and names that wait for an answer, and ids remembered as unknown."
MOST_BYTES = 4 << 20
"Of an answer."
SCHEMA_NOT_FOUND = 40403
"The registry's own code for an id that it does not know; a 404 without it may be any server's on the way."


class _Unknown(Exception):
    """The registry answered that it has no such schema."""


@dataclass(slots=True)
class _Asked:
    """An id or a name under way."""

    since: float
    answered: Future[None] = field(default_factory=Future)
    failed: int = 0
    failing_since: float = 0.0
    reason: str = "it has not answered yet"


class ConfluentRegistry:
    """Registers the current schemas under `riffle.<name>-value` and looks up writers' schemas.

    Answers are kept: a schema for good, that an id is unknown for `UNKNOWN_S`. What could not be answered is asked for again
    by itself until it is, so `trouble` ends soon after the registry's. Safe to use from several threads and event loops.
    Proxies of the environment are not used: the registry's address is one that Riffle is configured with.
    """

    def __init__(
        self,
        url: str,
        *,
        attempt_s: float = ATTEMPT_S,
        wait_s: float = WAIT_S,
        first_retry_s: float = FIRST_RETRY_S,
        unknown_s: float = UNKNOWN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`url` as RIFFLE_REGISTRY_URL: one address, or several with commas; user and password in the first count for all.

        Raises:
            ConfigError: it is no such address. No message holds any of it, because it may hold a password.
        """
        self._conf = _configuration(url)
        self._attempt_s, self._wait_s, self._first_retry_s, self._unknown_s = attempt_s, wait_s, first_retry_s, unknown_s
        self._addresses = self._conf["url"].count(",") + 1
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[int | str, Any] = {}
        self._unknown: dict[int | str, float] = {}
        "Ids that the registry does not know, until when."
        self._asked: dict[int | str, _Asked] = {}
        self._silent_since: float | None = None
        "When the first attempt failed since the registry last answered anything."
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread()
        self._client: AsyncSchemaRegistryClient | None = None
        self._slots = asyncio.Semaphore(AT_ONCE)

    @classmethod
    def at(cls, url: str) -> ConfluentRegistry:
        """The registry at `url`."""
        return cls(url)

    def id_of(self, name: str) -> int:
        """Id of the current version of schema `name`, which is registered when it is new.

        Raises:
            NotReady: `registry_unavailable`, it has not answered so far; it is being asked.
        """
        return int(self._get(name))

    def schema_of(self, schema_id: int) -> str:
        """Text of a registered schema.

        Raises:
            KeyError: the registry does not know the id.
            NotReady: `registry_unavailable`, it has not answered so far; it is being asked. The record may be good.
        """
        return str(self._get(schema_id))

    def trouble(self) -> str:
        """What is wrong with the registry, and for how long, for people to read; empty while nothing is."""
        with self._lock:
            failing = [asked for asked in self._asked.values() if asked.failed]
        if not failing:
            return ""
        longest = min(failing, key=lambda asked: asked.failing_since)
        return f"the schema registry has failed for {self._clock() - longest.failing_since:.0f} s: {longest.reason}"

    async def ready(self, wanted: Collection[int | str], within_s: float = math.inf) -> None:
        """Wait until ids or names are known, or known not to exist: at most `within_s`, and `WAIT_S` since they were asked for.

        While the registry has failed for that long nobody waits: records that need it must not hold up others again and again.
        Raises nothing: whoever uses an id or a name learns what became of it.
        """
        limit, until, missing = min(within_s, self._wait_s), self._clock(), list[_Asked]()
        with self._lock:
            for key in wanted:
                if not self._is_answered(key) and (asked := self._ask_for(key)) is not None:
                    missing.append(asked)
                    until = max(until, asked.since + limit)
            if self._silent_since is not None:
                until = min(until, self._silent_since + limit)
        left = until - self._clock()
        if missing and left > 0:
            loop = asyncio.get_running_loop()
            await asyncio.wait([_answer(asked, loop) for asked in missing], timeout=left)

    async def answered(self, wanted: int | str) -> None:
        """Wait without end until an id or a name is known, or known not to exist; not while too many are asked for."""
        with self._lock:
            asked = None if self._is_answered(wanted) else self._ask_for(wanted)
        if asked is not None:
            await _answer(asked, asyncio.get_running_loop())

    def close(self) -> None:
        """Ask no more; what is asked for later is asked again."""
        with self._lock:
            loop, self._loop, self._client = self._loop, None, None
            self._asked.clear()
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    def _is_answered(self, key: int | str) -> bool:
        return key in self._found or self._unknown.get(key, 0.0) > self._clock()

    def _get(self, key: int | str) -> Any:
        with self._lock:
            if key in self._found:
                return self._found[key]
            if self._is_answered(key):
                raise KeyError(key)
            asked = self._ask_for(key)
            reason = "too many schema ids wait for its answer" if asked is None else asked.reason
        raise NotReady("registry_unavailable", f"the schema registry gives no answer for {key!r}: {reason}")

    def _ask_for(self, key: int | str) -> _Asked | None:
        """Have it asked for, if it is not already; None when too much is. The caller holds the lock."""
        asked = self._asked.get(key)
        if asked is None and len(self._asked) < MOST_ASKED:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._slots = asyncio.Semaphore(AT_ONCE)
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="schema-registry", daemon=True)
                self._thread.start()
            asked = self._asked[key] = _Asked(self._clock())
            asyncio.run_coroutine_threadsafe(self._look_up(key, asked), self._loop)
        return asked

    async def _look_up(self, key: int | str, asked: _Asked) -> None:
        while True:
            try:
                async with self._slots, asyncio.timeout(self._attempt_s * self._addresses):
                    answer = await self._ask(key)
            except _Unknown:
                with self._lock:
                    if len(self._unknown) >= MOST_UNKNOWN:
                        self._unknown.clear()
                    self._unknown[key] = self._clock() + self._unknown_s
                break
            except Exception as exc:  # whatever the HTTP client, TLS or the answer comes to
                self._failed(asked, _reason(exc, self._attempt_s))
                await asyncio.sleep(min(self._first_retry_s * 2.0 ** min(asked.failed - 1, 20), LAST_RETRY_S))
            else:
                with self._lock:
                    self._found[key] = answer
                break
        with self._lock:
            self._asked.pop(key, None)
            self._silent_since = None
        asked.answered.set_result(None)

    def _failed(self, asked: _Asked, reason: str) -> None:
        with self._lock:
            now = self._clock()
            asked.failing_since = asked.failing_since if asked.failed else now
            asked.failed += 1
            asked.reason = reason
            self._silent_since = now if self._silent_since is None else self._silent_since

    async def _ask(self, key: int | str) -> Any:
        client = self._client
        if client is None:
            client = self._client = _client(self._conf, self._attempt_s)
        try:
            if isinstance(key, str):
                number = await client.register_schema(f"riffle.{key}-value", Schema(schema_text(key), "AVRO"))
                if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 1 << 32:
                    raise _Odd
                return number
            text = (await client.get_schema(key)).schema_str
            if not isinstance(text, str):
                raise _Odd
            return text
        except SchemaRegistryError as exc:
            if exc.http_status_code == 404 and exc.error_code == SCHEMA_NOT_FOUND and isinstance(key, int):
                raise _Unknown from exc
            raise
        except Exception:
            client.clear_caches()  # it keeps whatever an answer of status 200 holds
            raise


class _Odd(Exception):
    """An answer that is none of the registry's interface."""


def _answer(asked: _Asked, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    """Done when it is answered, in any thread."""
    future: asyncio.Future[None] = loop.create_future()

    def answered(_: Future[None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(None))

    asked.answered.add_done_callback(answered)
    return future


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
    while tasks := asyncio.all_tasks(loop):  # again, because a connection being made starts others until it is cancelled
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def _configuration(url: str) -> dict[str, Any]:
    addresses, user = [], None
    for given in url.split(","):
        try:
            parts = urlsplit(given.strip())
            sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            sound = False
        if not sound:
            message = "RIFFLE_REGISTRY_URL must be http://HOST:PORT or https://HOST:PORT, or several of them with commas"
            raise ConfigError("invalid_setting", message, "registry_url")
        named, _, host = parts.netloc.rpartition("@")
        user = user or named
        addresses.append(urlunsplit((parts.scheme, host, parts.path.rstrip("/"), "", "")))
    name, _, password = (user or "").partition(":")
    secret = {"basic.auth.user.info": f"{unquote(name)}:{unquote(password)}"} if user else {}
    # its own retries wait for seconds within one call
    return {"url": ",".join(addresses), "max.retries": 0, **secret}


def _client(conf: dict[str, Any], attempt_s: float) -> AsyncSchemaRegistryClient:
    # it reads the environment's proxies unless one is named; its session, which would use that one, is replaced at once
    client = AsyncSchemaRegistryClient({**conf, "proxy": "http://127.0.0.1"})
    rest = client._rest_client
    rest.session = httpx.AsyncClient(
        verify=rest.verify,
        auth=rest.auth,
        timeout=attempt_s,
        trust_env=False,
        limits=httpx.Limits(max_keepalive_connections=0),
        headers={"Accept-Encoding": "identity"},
        event_hooks={"response": [_bounded]},
    )
    return client


async def _bounded(response: httpx.Response) -> None:
    if int(response.headers.get("content-length", 0)) > MOST_BYTES:
        raise _Odd


def _reason(exc: Exception, attempt_s: float) -> str:
    """What to tell people; nothing of the address, and of the answer only what the registry's interface names."""
    if isinstance(exc, TimeoutError | httpx.TimeoutException):
        return f"no whole answer within {attempt_s:g} s"
    if isinstance(exc, SchemaRegistryError):
        status = exc.http_status_code
        if status in {401, 403}:
            return f"it refuses with status {status}: set user and password in RIFFLE_REGISTRY_URL (http://USER:PASSWORD@HOST)"
        said = f" ({str(exc.error_message)[:200]})" if isinstance(exc.error_code, int) and exc.error_code > 0 else ""
        return f"it answers with status {status}{said}"
    if isinstance(exc, httpx.TransportError | OSError):
        return f"it cannot be reached ({type(exc).__name__}): is RIFFLE_REGISTRY_URL right, and the registry up?"
    if isinstance(exc, _Odd | json.JSONDecodeError | AttributeError | TypeError | KeyError | ValueError):
        return "what answers at RIFFLE_REGISTRY_URL is no schema registry"
    return exc.code if isinstance(exc, RiffleError) else type(exc).__name__
