"""Requests to the owner of a partition over Kafka, which routes them by key: for an owner whose address is not known."""

from __future__ import annotations

import asyncio

from schemas.errors import DeadlineExceeded, NotReady
from schemas.records import Request, Slate, UserPage, UserQuery
from schemas.settings import Settings
from streams.kafka.client import RiffleClient
from streams.tracing import Tracing

__all__ = ["OverKafka"]


class OverKafka:
    """Asks over Kafka, by one client. Nothing connects before the first request."""

    def __init__(self, settings: Settings, tracing: Tracing | None = None) -> None:
        self._settings = settings
        self._tracing = tracing
        self._client: asyncio.Task[RiffleClient] | None = None

    async def ask(self, request: Request, within_s: float) -> Slate:
        """Return the owner's answer; at most `within_s` seconds are waited.

        Raises:
            DeadlineExceeded: no answer came in time.
            RiffleError: as `RiffleClient.recommend`.
        """
        client, left_ms = await self._client_within(within_s)
        return await client.recommend(request, left_ms)

    async def users(self, partition: int, query: UserQuery, within_s: float) -> UserPage:
        """Return users of a partition from its owner; at most `within_s` seconds are waited.

        Raises:
            DeadlineExceeded: no answer came in time.
            RiffleError: as `RiffleClient.users`.
        """
        client, left_ms = await self._client_within(within_s)
        return await client.users(partition, query, left_ms)

    async def _client_within(self, within_s: float) -> tuple[RiffleClient, int]:
        """Return the connected client, and the milliseconds that are left."""
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        client = self._client
        if client is None or (client.done() and self._failed(client)):
            client = self._client = asyncio.create_task(self._started(), name="requests over Kafka")
        # a client that connects slowly serves the next requests, so it is not cancelled with this one
        done, _ = await asyncio.wait({client}, timeout=within_s)
        left_ms = int((until - loop.time()) * 1000)
        if not done or left_ms < 1:
            message = f"the worker did not connect to Kafka within {within_s:g} s to reach the owner of this user's partition"
            raise DeadlineExceeded("deadline_exceeded", message)
        if client.cancelled():
            raise NotReady("not_ready", "this worker is stopping")
        return client.result(), left_ms

    @staticmethod
    def _failed(task: asyncio.Task[RiffleClient]) -> bool:
        return task.cancelled() or task.exception() is not None

    async def _started(self) -> RiffleClient:
        client = RiffleClient(self._settings, tracing=self._tracing)
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
