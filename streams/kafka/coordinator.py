"""Consumer group coordinator that continues after an error of its group, and joins it once. Importing this replaces aiokafka's.

aiokafka passes a group error to the next call that asks the consumer for records. Until that call it does nothing: it does not
rejoin and sends no heartbeats. Faust asks the fetcher instead, so that call never comes. The group then gives the member's
partitions to others, while the member continues to read them.

With several assignors aiokafka asks to join once for each: with the first one, then with two, and so on. Each request with
other assignors than the one before begins a rebalance anew, so that two members may interrupt each other without end.
"""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

from aiokafka.consumer import consumer
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.protocol.group import JoinGroupRequest

from streams.back_off import BackOff
from streams.kafka.error_codes import advice_of

__all__ = ["Coordinator"]

log = logging.getLogger(__name__)

FIRST_S, MOST_S = 0.2, 10.0
"Seconds before the group is asked again: the first time, and at most."


SKIPPED = SimpleNamespace(error_code=0)
"Response to a request that is not sent. aiokafka then goes on with the next one."


class Coordinator(GroupCoordinator):  # type: ignore[misc]
    """aiokafka's coordinator, which retries by itself. `trouble` is its last error; None while it works."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.trouble: BaseException | None = None
        self._heartbeat_task: asyncio.Task[None] | None = None
        self._commit_refresh_task: asyncio.Task[None] | None = None
        self._back_off = BackOff(FIRST_S, MOST_S)
        super().__init__(*args, **kwargs)

    async def _push_error_to_user(self, exc: BaseException) -> None:
        """Restart the tasks that an error of the group ended. Called with every such error."""
        self.trouble = exc
        log.warning("group %s: %s; trying again", self.group_id, advice_of(exc))
        await asyncio.wait([self._closing], timeout=self._back_off.failed())
        if self._closing.done():
            return
        if _failed(self._heartbeat_task):
            self._heartbeat_task = None
            self._start_heartbeat_task()
        if _failed(self._commit_refresh_task):
            self._commit_refresh_task = None
            subscription = self._subscription.subscription
            if subscription is not None and subscription.assignment is not None:
                self.start_commit_offsets_refresh_task(subscription.assignment)

    async def _send_req(self, request: Any) -> Any:
        """Send a request to the group's coordinator, except a join that does not name all assignors yet."""
        if isinstance(request, JoinGroupRequest) and len(request._group_protocols) < len(self._assignors):
            return SKIPPED
        return await super()._send_req(request)

    async def _do_heartbeat(self) -> bool:
        if done := bool(await super()._do_heartbeat()):
            self.trouble = None
        return done


def _failed(task: asyncio.Task[Any] | None) -> bool:
    return task is not None and task.done() and not task.cancelled() and task.exception() is not None


consumer.GroupCoordinator = Coordinator
