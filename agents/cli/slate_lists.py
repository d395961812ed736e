"""Slates of many users from a running worker, by lists of requests, in the order of the users."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import quote

import aiohttp
import orjson

from agents.cli import asking
from agents.web.caller import ANYONE, Caller
from schemas.errors import NotReady, RiffleError
from schemas.masking import masked_url
from streams.back_off import BackOff

__all__ = ["Failed", "SlateLists", "all_users"]

SIZE = 50
"Maximum number of requests in a list. Longer ones are not faster, and delay other requests more (`benchmarks/lists.py`)."
PAGE_S = 30.0
"Time limit in seconds of the answer to a page of users."
ANSWER_S = 30.0
"Seconds after its deadline for which the answer to a list is waited for."
PATIENCE_S = 120.0
"Seconds without any answer after which the worker is given up."
FIRST_S, MOST_S = 0.1, 5.0
"First and longest wait in seconds before a refused request is sent again."
TRIES = 5
"Number of times that a request is sent which fails with the status 500."

Slate = dict[str, Any]
"A slate as JSON values."


@dataclass(frozen=True, slots=True)
class Failed:
    """A user for whom there is no slate, because the worker refuses the request permanently."""

    user_id: str
    code: str
    message: str


def all_users(url: str, sleep: Callable[[float], None] = time.sleep, caller: Caller = ANYONE) -> Iterator[str]:
    """Yield the ids of all users that the workers know, by partition and the bytes of the id.

    Raises:
        NotReady: no worker answers, or a partition is not available for `PATIENCE_S`.
    """
    number, partitions = 0, 1
    while number < partitions:
        after: str | None = ""
        while after is not None:
            page = _page(f"{url}/v1/users?partition={number}&after={quote(after, safe='')}", sleep, caller)
            yield from page["users"]
            partitions, after = page["partitions"], page["next"]
        number += 1


def _page(url: str, sleep: Callable[[float], None], caller: Caller) -> Mapping[str, Any]:
    waits, waited_s = BackOff(FIRST_S, MOST_S), 0.0
    while True:
        answer = asking.ask(url, PAGE_S, caller=caller)
        if answer.status == 200 and isinstance(answer.body, dict) and "users" in answer.body:
            return answer.body
        error = _error_in(answer.body, f"{masked_url(url)} answers HTTP {answer.status}")
        if answer.status not in {503, 504} or waited_s > PATIENCE_S:
            raise NotReady(error.code, f"the users cannot be listed: {error.message}")
        wait_s = waits.failed()
        sleep(wait_s)
        waited_s += wait_s


@dataclass(slots=True)
class SlateLists:
    """Asks for slates. Each user gets a slate or is `Failed`: a request that is refused for now is sent again, later and later.

    At most `parallel` lists are in flight, and at most twice as many are held here.
    """

    url: str
    "Address of a worker, without a slash at the end."
    request: Mapping[str, Any]
    "The fields of each request but `user_id`."
    deadline_ms: int = 10_000
    size: int = SIZE
    parallel: int = 1
    clock: Callable[[], float] = time.monotonic
    caller: Caller = ANYONE
    counts: Counter[str] = field(default_factory=Counter)
    "`lists` that were sent, and requests that were `refused` for now, and sent again."
    _flying: asyncio.Semaphore = field(init=False)
    _answered_s: float = field(init=False)
    "Time of the last slate."

    def __post_init__(self) -> None:
        self._flying = asyncio.Semaphore(self.parallel)
        self._answered_s = self.clock()

    async def slates(self, users: Iterable[str]) -> AsyncGenerator[list[Slate | Failed], None]:
        """Yield the answers in the order of `users`, those of a list at once.

        Raises:
            NotReady: there was no slate for `PATIENCE_S`.
            RiffleError: the worker refuses whole lists.
        """
        timeout = aiohttp.ClientTimeout(total=self.deadline_ms / 1000 + ANSWER_S)
        left, held = iter(users), deque[asyncio.Task[list[Slate | Failed]]]()
        self._answered_s = self.clock()
        async with aiohttp.ClientSession(timeout=timeout, headers={"deadline-ms": str(self.deadline_ms)}) as session:
            try:
                while batch := list(islice(left, self.size)):
                    held.append(asyncio.create_task(self._answers(session, batch)))
                    if len(held) >= 2 * self.parallel:
                        yield await held.popleft()
                while held:
                    yield await held.popleft()
            finally:
                for task in held:
                    task.cancel()
                await asyncio.gather(*held, return_exceptions=True)

    async def _answers(self, session: aiohttp.ClientSession, users: list[str]) -> list[Slate | Failed]:
        """Ask for the slates of these users until each is answered."""
        found: dict[str, Slate | Failed] = {}
        left, tries, waits = users, 0, BackOff(FIRST_S, MOST_S, self.clock)
        while True:
            answers, tries = await self._ask(session, left), tries + 1
            for user, answer in zip(left, answers, strict=True):
                status = 200 if "error" not in answer else answer["status"]
                if status == 200:
                    found[user] = answer
                    self._answered_s = self.clock()
                elif status < 500 or (status == 500 and tries >= TRIES):
                    found[user] = Failed(user, answer["error"]["code"], answer["error"]["message"])
            left = [user for user in left if user not in found]
            if not left:
                return [found[user] for user in users]
            self.counts["refused"] += len(left)
            if self.clock() - self._answered_s > PATIENCE_S:
                error = next(answer["error"] for answer in answers if "error" in answer)
                raise NotReady("no_answer", f"the worker has answered nobody for {PATIENCE_S:.0f} s: {error['message']}")
            await asyncio.sleep(waits.failed())

    async def _ask(self, session: aiohttp.ClientSession, users: list[str]) -> list[dict[str, Any]]:
        """Send one list; returns its answers. If the worker does not answer, each is a temporary error."""
        body = orjson.dumps([{**self.request, "user_id": user} for user in users])
        async with self._flying:
            self.counts["lists"] += 1
            why = "the worker does not answer"
            with suppress(aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError, OSError):
                url = f"{self.url}/v1/recommend"
                own = self.caller.arguments(url)
                async with session.post(url, data=body, allow_redirects=False, **own) as response:
                    status, text = response.status, await response.read()
                answers = _parsed(text)
                if status == 200 and isinstance(answers, dict) and len(answers.get("answers", ())) == len(users):
                    return list(answers["answers"])
                error = _error_in(answers, f"{masked_url(self.url)} answers HTTP {status}, and no list of slates")
                if status < 500:
                    raise error
                why = error.message
        return [{"error": {"code": "no_answer", "message": why}, "status": 503}] * len(users)


def _parsed(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _error_in(body: object, otherwise: str) -> RiffleError:
    """Return the error that a response holds, or one with the message `otherwise`."""
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return RiffleError("no_worker", otherwise)
    return RiffleError(str(error.get("code")), str(error.get("message")), error.get("field"))
