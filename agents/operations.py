"""What an operator does from the web page: implements `agents.web.operator.Operator`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from agents.promotion import Change, promotion, rollback
from schemas.errors import BadRequest, NotReady, ReleaseRejected
from schemas.settings import Settings
from streams.kafka.dead_letters import origins_of, read_letters, replay_letters

__all__ = ["SCANNED", "WorkerOperations"]

log = logging.getLogger(__name__)

T = TypeVar("T")

SCANNED = 2_000
"Number of the newest dead letters that are looked at."
SHOWN_BYTES = 2_000
"Bytes of a value that are shown."
TIMEOUT_S = 60.0
"Time limit of an action in seconds."
READ_S = 20.0
"Time limit in seconds of each part of a replay: reading letters, looking for erasures, sending."


class WorkerOperations:
    """Uses Kafka clients of its own, which live as long as an action."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._busy = asyncio.Lock()
        self._noting = asyncio.Lock()
        "Held while MLflow is written to, so that decisions are recorded in their order."
        self._tasks = set[asyncio.Task[Any]]()

    @asynccontextmanager
    async def _alone(self, limit_s: float | None = None) -> AsyncIterator[None]:
        self._check_free()
        try:
            async with self._busy, asyncio.timeout(limit_s):
                yield
        except TimeoutError as exc:
            raise NotReady("broker_unavailable", f"this took longer than {TIMEOUT_S:.0f} s: does Kafka answer?") from exc

    def _check_free(self) -> None:
        if self._busy.locked():
            raise NotReady("busy", "another action is under way here: try again")

    async def _scanned(self) -> list[dict[str, Any]]:
        return [letter async for letter in read_letters(self._settings, SCANNED)]

    async def letters(self, most: int, code: str) -> dict[str, Any]:
        """See `Operator.letters`."""
        async with self._alone(TIMEOUT_S):
            found = [letter for letter in await self._scanned() if code in {"", letter["code"]}]
        codes = Counter(letter["code"] for letter in found)
        return {"scanned": SCANNED, "codes": dict(codes.most_common()), "letters": [_plain(one) for one in found[::-1][:most]]}

    async def replay(self, letters: Sequence[int], code: str) -> dict[str, int]:
        """See `Operator.replay`."""
        wanted = frozenset(letters)
        async with self._alone():  # limited by its parts, because what was sent must be reported
            async with asyncio.timeout(READ_S):
                found = await self._scanned()
            chosen = [one for one in found if code in {"", one["code"]} and (not wanted or one["letter"] in wanted)]
            if not chosen:
                raise BadRequest("not_found", f"none of the {SCANNED} newest dead letters is meant", "letters")
            return await replay_letters(self._settings, chosen, origins_of(found), READ_S)

    async def promote(self, name: str, expected: str | None = None) -> dict[str, Any]:
        """See `Operator.promote`."""
        return await self._released(partial(promotion, self._settings, name, expected=expected))

    async def roll_back(self, expected: str | None = None) -> dict[str, Any]:
        """See `Operator.roll_back`."""
        return await self._released(partial(rollback, self._settings, expected=expected))

    async def _released(self, act: Callable[..., Change]) -> dict[str, Any]:
        """Verify and announce in a thread, because files are read and graphs are opened.

        A thread cannot be cancelled, so the lock is held until it ends, also after the answer.
        """
        self._check_free()
        await self._busy.acquire()
        task = self._started(self._acted(partial(act, until=time.monotonic() + TIMEOUT_S)))
        done, _ = await asyncio.wait({task}, timeout=TIMEOUT_S)
        if not done:
            message = f"still under way after {TIMEOUT_S:.0f} s: look which release serves before you repeat it"
            raise NotReady("under_way", message)
        try:
            return task.result().facts()
        except ReleaseRejected as exc:
            if exc.code == "not_found":
                raise BadRequest("not_found", exc.message) from exc
            if exc.code == "champion_changed":
                raise BadRequest("champion_changed", exc.message, "expected") from exc
            raise BadRequest("release_refused", exc.message) from exc

    async def _acted(self, act: Callable[[], Change]) -> Change:
        try:
            change = await asyncio.to_thread(act)
        finally:
            self._busy.release()
        log.info("an operator announced: champion %s, previous %s", change.champion, change.previous)
        self._started(self._noted(change))
        return change

    async def _noted(self, change: Change) -> None:
        """Record the decisions after the answer, because MLflow may be slow."""
        async with self._noting:
            await asyncio.to_thread(change.note)

    def _started(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:  # also of a task that nobody waits for any more
            log.warning("an operator's action failed: %s", error)


def _plain(letter: Mapping[str, Any]) -> dict[str, Any]:
    """Return a letter as JSON values: bytes as text, long values cut."""
    headers = {name: _text(value) for name, value in letter.get("headers", {}).items()}
    value = letter.get("value")
    facts = {name: letter.get(name) for name in ("letter", "topic", "partition", "offset", "timestamp", "code", "reason")}
    return {**facts, "key": _text(letter.get("key")), "value": _text(value), "bytes": len(value or b""), "headers": headers}


def _text(data: bytes | None) -> str | None:
    return None if data is None else data[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
