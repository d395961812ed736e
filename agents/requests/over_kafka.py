"""Requests to the owner of a partition over Kafka, which routes them by key: for an owner whose address is not known."""

from __future__ import annotations

import asyncio

from schemas.errors import DeadlineExceeded
from schemas.records import Request, Slate
from schemas.settings import Settings
from streams.kafka.client import RiffleClient

__all__ = ["OverKafka"]


class OverKafka:
    """Asks over Kafka. Nothing connects before the first request."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: asyncio.Task[RiffleClient] | None = None

    async def ask(self, request: Request, within_s: float) -> Slate:
        """Return the owner's answer; at most `within_s` seconds are waited.

        Raises:
            DeadlineExceeded: no answer came in time.
            RiffleError: as `RiffleClient.recommend`.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        if self._client is None or (self._client.done() and self._failed(self._client)):
            self._client = asyncio.create_task(self._started(), name="requests over Kafka")
        # a client that connects slowly serves the next requests, so it is not cancelled with this one
        done, _ = await asyncio.wait({self._client}, timeout=within_s)
        left_ms = int((until - loop.time()) * 1000)
        if not done or left_ms < 1:
            raise DeadlineExceeded("deadline_exceeded", "Kafka did not answer in time")
        return await self._client.result().recommend(request, left_ms)

    @staticmethod
    def _failed(task: asyncio.Task[RiffleClient]) -> bool:
        return task.cancelled() or task.exception() is not None

    async def _started(self) -> RiffleClient:
        client = RiffleClient(self._settings)
        await client.start()
        return client

    async def stop(self) -> None:
        """Close the client."""
        task, self._client = self._client, None
        if task is not None:
            if not task.done():
                task.cancel()
            (client,) = await asyncio.gather(task, return_exceptions=True)
            if isinstance(client, RiffleClient):
                await client.stop()
