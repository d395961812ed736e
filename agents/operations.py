"""What an operator does from the web page: implements `agents.web.operator.Operator`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from agents.promotion import promote, roll_back
from schemas.errors import BadRequest, NotReady, ReleaseRejected
from schemas.settings import Settings
from streams.kafka.dead_letters import read_letters, replay_letters

__all__ = ["SCANNED", "WorkerOperations"]

SCANNED = 2_000
"Number of the newest dead letters that are looked at."
SHOWN_BYTES = 2_000
"Bytes of a value that are shown."
TIMEOUT_S = 60.0
"Time limit of an action in seconds."


class WorkerOperations:
    """Uses Kafka clients of its own, which live as long as an action."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._busy = asyncio.Lock()

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        if self._busy.locked():
            raise NotReady("busy", "another action is under way here: try again")
        try:
            async with self._busy, asyncio.timeout(TIMEOUT_S):
                yield
        except TimeoutError as exc:
            raise NotReady("broker_unavailable", f"this took longer than {TIMEOUT_S:.0f} s: does Kafka answer?") from exc

    async def _newest(self, code: str) -> list[dict[str, Any]]:
        found = [letter async for letter in read_letters(self._settings, SCANNED)]
        return [letter for letter in found if code in {"", letter["code"]}]

    async def letters(self, most: int, code: str) -> dict[str, Any]:
        """See `Operator.letters`."""
        async with self._alone():
            found = await self._newest(code)
        codes = Counter(letter["code"] for letter in found)
        return {"scanned": SCANNED, "codes": dict(codes.most_common()), "letters": [_plain(one) for one in found[::-1][:most]]}

    async def replay(self, letters: Sequence[int], code: str) -> dict[str, int]:
        """See `Operator.replay`."""
        wanted = frozenset(letters)
        async with self._alone():
            chosen = [one for one in await self._newest(code) if not wanted or one["letter"] in wanted]
            if not chosen:
                raise BadRequest("not_found", f"none of the {SCANNED} newest dead letters is meant", "letters")
            return await replay_letters(self._settings, chosen)

    async def promote(self, name: str) -> dict[str, Any]:
        """See `Operator.promote`."""
        return await self._released(partial(promote, self._settings, name))

    async def roll_back(self) -> dict[str, Any]:
        """See `Operator.roll_back`."""
        return await self._released(partial(roll_back, self._settings))

    async def _released(self, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Verify and announce in a thread, because files are read and graphs are opened."""
        async with self._alone():
            try:
                return await asyncio.to_thread(act)
            except ReleaseRejected as exc:
                if exc.code == "not_found":
                    raise BadRequest("not_found", exc.message) from exc
                raise BadRequest("release_refused", exc.message) from exc


def _plain(letter: Mapping[str, Any]) -> dict[str, Any]:
    """Return a letter as JSON values: bytes as text, long values cut."""
    headers = {name: _text(value) for name, value in letter.get("headers", {}).items()}
    value = letter.get("value")
    facts = {name: letter.get(name) for name in ("letter", "topic", "partition", "offset", "timestamp", "code", "reason")}
    return {**facts, "key": _text(letter.get("key")), "value": _text(value), "bytes": len(value or b""), "headers": headers}


def _text(data: bytes | None) -> str | None:
    return None if data is None else data[:SHOWN_BYTES].decode("utf-8", "backslashreplace")
