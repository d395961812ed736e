"""Non-blocking access to a schema registry through confluent-kafka's client.

Lookups return at once: a separate thread requests unknown schemas, and `ready` waits for it for a bounded time. A registry that
is down, slow or broken affects only the records that need it.
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

from schemas.backend_login import BackendLogin
from schemas.codec import schema_text
from schemas.errors import ConfigError, NotReady, RiffleError

__all__ = ["ConfluentRegistry"]

NO_LOGIN = BackendLogin("registry")
ATTEMPT_S = 2.0
"Time limit in seconds of one attempt, from the connection to the last byte of the answer."
WAIT_S = 5.0
"Maximum seconds that records wait for a schema after its first request, while the registry is not failing."
FIRST_RETRY_S, LAST_RETRY_S = 0.25, 30.0
"Seconds before the next attempt after a failure: the first, doubled at each failure up to the second."
UNKNOWN_S = 10.0
"Seconds for which an id that the registry does not have is not requested again."
AT_ONCE, MOST_ASKED, MOST_UNKNOWN = 4, 256, 4_096
"Maximum numbers of concurrent attempts, of pending ids and names, and of ids remembered as unknown."
MOST_BYTES = 4 << 20
"Maximum size of an answer in bytes."
SCHEMA_NOT_FOUND = 40403
"The registry's error code for an unknown id. A 404 without it may come from another server, such as a proxy."


class _Unknown(Exception):
    """The registry has no such schema."""


@dataclass(slots=True)
class _Asked:
    """A pending request for an id or a name."""

    since: float
    answered: Future[None] = field(default_factory=Future)
    request: Future[None] = field(default_factory=Future)
    failed: int = 0
    failing_since: float = 0.0
    reason: str = "it has not answered yet"


class ConfluentRegistry:
    """Registers the current schemas under `riffle.<name>-value` and looks up writers' schemas.

    Answers are cached: schemas permanently, unknown ids for `UNKNOWN_S`. Failed requests are repeated automatically until they
    are answered, so that `trouble` ends soon after the registry recovers. Safe to use from several threads and event loops.
    Proxies of the environment are not used, because the registry's address is Riffle's own setting.
    """

    def __init__(
        self,
        url: str,
        *,
        login: BackendLogin = NO_LOGIN,
        attempt_s: float = ATTEMPT_S,
        wait_s: float = WAIT_S,
        first_retry_s: float = FIRST_RETRY_S,
        unknown_s: float = UNKNOWN_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Parse `url` (RIFFLE_REGISTRY_URL): one address, or several with commas. The first user and password apply to all.

        Raises:
            ConfigError: it is not such an address. The message does not repeat it, because it may contain a password.
        """
        self._conf = _configuration(url)
        self._login, self._stamps = login, login.stamps
        self._attempt_s, self._wait_s, self._first_retry_s, self._unknown_s = attempt_s, wait_s, first_retry_s, unknown_s
        self._addresses = self._conf["url"].count(",") + 1
        self._clock = clock
        self._lock = threading.Lock()
        self._found: dict[int | str, Any] = {}
        self._unknown: dict[int | str, float] = {}
        "Ids that the registry does not have, and the clock time until which this is remembered."
        self._asked: dict[int | str, _Asked] = {}
        self._silent_since: float | None = None
        "Clock time of the first failed attempt since the registry's last answer; None if there is none."
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread()
        self._client: AsyncSchemaRegistryClient | None = None
        self._former: list[AsyncSchemaRegistryClient] = []
        "Clients of before a file changed, which requests under way may still use."
        self._slots = asyncio.Semaphore(AT_ONCE)

    @classmethod
    def at(cls, url: str, login: BackendLogin = NO_LOGIN) -> ConfluentRegistry:
        """Return the registry at `url`. Files of `login` are read again when they change."""
        return cls(url, login=login)

    def id_of(self, name: str) -> int:
        """Return the id of the current version of schema `name`. A new version is registered.

        Raises:
            NotReady: `registry_unavailable`, the request is still pending.
        """
        return int(self._get(name))

    def schema_of(self, schema_id: int) -> str:
        """Return the text of a registered schema.

        Raises:
            KeyError: the registry does not have the id.
            NotReady: `registry_unavailable`, the request is still pending. The record may be valid.
        """
        return str(self._get(schema_id))

    def trouble(self) -> str:
        """Describe the registry's current problem and its duration for operators; empty without one."""
        with self._lock:
            failing = [asked for asked in self._asked.values() if asked.failed]
        if not failing:
            return ""
        longest = min(failing, key=lambda asked: asked.failing_since)
        return f"the schema registry has failed for {self._clock() - longest.failing_since:.0f} s: {longest.reason}"

    async def ready(self, wanted: Collection[int | str], within_s: float = math.inf) -> None:
        """Wait until ids or names are known, or known not to exist: at most `within_s`, and `WAIT_S` from their first request.

        If the registry has failed for that long, this returns at once, so that records that need it do not repeatedly delay
        others. It raises nothing: the later use of an id or a name raises its error.
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
        """Wait without limit until an id or a name is known, or known not to exist; returns at once if too many are pending."""
        with self._lock:
            asked = None if self._is_answered(wanted) else self._ask_for(wanted)
        if asked is not None:
            await _answer(asked, asyncio.get_running_loop())

    def close(self) -> None:
        """Stop all requests. A later lookup starts again."""
        with self._lock:
            loop, self._loop = self._loop, None
            clients, self._client, self._former = [*self._former, self._client], None, []
            pending, self._asked = self._asked, {}
        if loop is not None:
            for asked in pending.values():  # but not what a request waits for: it is cancelled by the request itself
                asked.request.cancel()
            asyncio.run_coroutine_threadsafe(_end(clients), loop)
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
        """Request an id or a name unless it is pending; None if too many are pending. The caller must hold the lock."""
        asked = self._asked.get(key)
        if asked is None and len(self._asked) < MOST_ASKED:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._slots = asyncio.Semaphore(AT_ONCE)
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="schema-registry", daemon=True)
                self._thread.start()
            asked = self._asked[key] = _Asked(self._clock())
            asked.request = asyncio.run_coroutine_threadsafe(self._look_up(key, asked), self._loop)
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
            except Exception as exc:  # any error of the HTTP client, of TLS or of the answer
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
        if client is not None and (stamps := self._login.stamps) != self._stamps:
            self._former.append(client)
            self._stamps, client = stamps, None
        if client is None:
            client = self._client = _client(self._conf, self._attempt_s, self._login)
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
            client.clear_caches()  # the client caches every answer of status 200, even an invalid one
            raise


class _Odd(Exception):
    """An answer that does not follow the registry's interface."""


def _answer(asked: _Asked, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
    """Return a future of `loop` that is done when the request is answered, in any thread."""
    future: asyncio.Future[None] = loop.create_future()

    def answered(_: Future[None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(lambda: None if future.done() else future.set_result(None))

    asked.answered.add_done_callback(answered)
    return future


async def _end(clients: list[AsyncSchemaRegistryClient | None]) -> None:
    """Wait for the requests, which are cancelled, close the clients' connections, and stop the loop."""
    loop = asyncio.get_running_loop()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.gather(*others, return_exceptions=True)
    for client in clients:
        if client is not None:
            await client._rest_client.session.aclose()
    loop.stop()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()
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
    # no retries by the client, because they block for seconds within one call
    return {"url": ",".join(addresses), "max.retries": 0, **secret}


def _client(conf: dict[str, Any], attempt_s: float, login: BackendLogin) -> AsyncSchemaRegistryClient:
    if login.password_file:
        conf = {**conf, "basic.auth.user.info": f"{login.username}:{login.password()}"}
    # the client reads the environment's proxies unless one is given; the session below replaces the one with that proxy
    client = AsyncSchemaRegistryClient({**conf, "proxy": "http://127.0.0.1"})
    rest = client._rest_client
    rest.session = httpx.AsyncClient(
        verify=login.context() if login.ca_file else rest.verify,
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
    """Describe an error for operators, without the address and with no more of the answer than the documented message."""
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
        return "the server at RIFFLE_REGISTRY_URL is not a schema registry"
    return exc.code if isinstance(exc, RiffleError) else type(exc).__name__
