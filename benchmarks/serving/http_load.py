"""Requests over HTTP, on connections that stay open."""

from __future__ import annotations

import random

import aiohttp
import orjson

from schemas.settings import Settings
from serving.sample import Sample
from serving.summary import Answer


class Http:
    """`POST /v1/recommend` with bodies that were encoded before."""

    def __init__(self, settings: Settings, session: aiohttp.ClientSession, bodies: list[bytes], deadline_ms: int) -> None:
        self._session, self._bodies = session, bodies
        self._url = f"{settings.web}/v1/recommend?deadline_ms={deadline_ms}"

    @staticmethod
    def slates(sample: Sample) -> list[bytes]:
        """Bodies that ask for ten items."""
        return [orjson.dumps({"user_id": user, "k": 10}) for user in random.sample(sample.users, len(sample.users))]

    @staticmethod
    def rankings(sample: Sample) -> list[bytes]:
        """Bodies with candidates, all of which are to be returned."""
        return [
            orjson.dumps({"user_id": user, "candidates": items, "k": len(items)}) for user, items in sample.candidates if items
        ]

    async def ask(self, n: int) -> Answer:
        try:
            async with self._session.post(self._url, data=self._bodies[n % len(self._bodies)]) as response:
                body = orjson.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            return Answer(0, 0, refused=type(error).__name__)
        if response.status != 200:
            return Answer(0, 0, refused=body["error"]["code"])
        return Answer(0, 0, tuple(body["degraded"]), items=len(body["items"]), timings=body["timings_ms"])
