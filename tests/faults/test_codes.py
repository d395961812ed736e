"""Return every Kafka error code once to each kind of client: the worker recovers by itself and loses no event.

`make faults FAULT=codes` takes every EVERY-th code (1: all) and prints the cost of each.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from fault_trial import Trial

from streams.kafka.error_codes import CODES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(7_200)]

log = logging.getLogger(__name__)

EVERY = int(os.environ.get("EVERY", "1"))
AGAIN_S, GIVEN_AGAIN_S = 30.0, 6.0
PRODUCE, FETCH, OFFSETS, METADATA, OFFSET_COMMIT, OFFSET_FETCH = 0, 1, 2, 3, 8, 9
FIND_COORDINATOR, JOIN_GROUP, HEARTBEAT, SYNC_GROUP, INIT_PRODUCER = 10, 11, 12, 14, 22
ADD_PARTITIONS, ADD_OFFSETS, END_TXN, TXN_OFFSET_COMMIT = 24, 25, 26, 28
NOT_LEADER, REBALANCE, OUT_OF_ORDER, NOT_COORDINATOR = 6, 27, 45, 16

ROLES: dict[str, list[list[tuple[int, int | None]]]] = {
    "producer": [
        [(PRODUCE, None)],
        [(PRODUCE, OUT_OF_ORDER), (INIT_PRODUCER, None)],
        [(ADD_PARTITIONS, OUT_OF_ORDER), (INIT_PRODUCER, None)],
    ],
    "transaction": [[(ADD_PARTITIONS, None)], [(ADD_OFFSETS, None)], [(TXN_OFFSET_COMMIT, None)], [(END_TXN, None)]],
    "consumer": [
        [(FETCH, None)],
        [(OFFSETS, None)],
        [(HEARTBEAT, None)],
        [(HEARTBEAT, REBALANCE), (JOIN_GROUP, None)],
        [(HEARTBEAT, REBALANCE), (SYNC_GROUP, None)],
        [(HEARTBEAT, REBALANCE), (OFFSET_FETCH, None)],
        [(OFFSET_COMMIT, None)],
        [(HEARTBEAT, NOT_COORDINATOR), (FIND_COORDINATOR, None)],
    ],
    "admin": [[(PRODUCE, NOT_LEADER), (METADATA, None)], [(METADATA, None)]],
}
"Per kind of client: the requests whose answers carry the code (None), after requests that make the client send them."


class Orders:
    """Orders error codes in the broker's answers to a faulty worker build."""

    def __init__(self, trial: Trial) -> None:
        self.trial = trial
        self.home = trial.settings.home
        self.user = 0

    def give(self, steps: list[tuple[int, int]]) -> None:
        (self.home / "done").write_text("")
        (self.home / "new").write_text("".join(f"{api} {code}\n" for api, code in steps))
        (self.home / "new").replace(self.home / "orders")

    def done(self) -> int:
        return len((self.home / "done").read_text().splitlines())

    async def carried_out(self, steps: list[tuple[int, int]], load: Callable[[], Awaitable[object]]) -> None:
        """Wait, under load, until the worker has received all ordered errors. They are ordered again if the first ones make
        another client send the requests.

        `load` returns False while the worker does not serve: it is then still healing from the first steps, and the same
        orders again would be errors of their own.
        """
        self.give(steps)
        given = time.monotonic()
        async with asyncio.timeout(AGAIN_S + 60):
            while self.done() < len(steps):
                process = self.trial.worker.process
                assert process.poll() is None, f"{steps} ended the worker\n{self.trial.worker.log.read_text()[-3_000:]}"
                if time.monotonic() - given > GIVEN_AGAIN_S:
                    self.give(steps)
                    given = time.monotonic()
                if await load() is False:
                    given = time.monotonic()

    async def serves(self, session: aiohttp.ClientSession) -> bool:
        """Check that events over HTTP are stored and applied, and that slates reflect them."""
        self.user += 1
        web, user = self.trial.settings.web, f"served{self.user}"
        event = {"user_id": user, "item_id": "i1", "action": "like"}
        try:
            async with session.post(f"{web}/v1/events", json=event) as response:
                if response.status != 202:
                    return False
                token = (await response.json())["tokens"][0]
            after = f"{token['partition']}:{token['offset']}"
            async with session.get(f"{web}/v1/recommend/{user}?after={after}&deadline_ms=5000") as response:
                slate = await response.json()
                return response.status == 200 and "stale" not in slate["degraded"]
        except (aiohttp.ClientError, TimeoutError):
            return False


async def said(session: aiohttp.ClientSession, web: str) -> dict[str, Any]:
    async with session.get(f"{web}/readyz") as response:
        found: dict[str, Any] = await response.json()
        return found


@pytest.mark.parametrize("role", ROLES)
async def test_every_code_once(role: str, trial: Trial) -> None:
    await trial.start("broker_answers")
    pid, orders, costs = trial.worker.process.pid, Orders(trial), dict[str, float]()
    timeout = aiohttp.ClientTimeout(total=15)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for n, code in enumerate(list(CODES)[::EVERY]):
            ways = ROLES[role]
            steps = [(api, code if given is None else given) for api, given in ways[n % len(ways)]]
            started = time.monotonic()

            async def load() -> bool:
                await trial.sent.events(2)
                return await orders.serves(session)

            await orders.carried_out(steps, load)
            name = f"{CODES[code].name} at {steps[-1][0]}"
            carried = time.monotonic()
            while not await orders.serves(session):
                late = time.monotonic() - carried > AGAIN_S
                end = trial.worker.log.read_text()[-3_000:]
                assert trial.worker.process.poll() is None, f"{name} ended the worker\n{end}"
                assert not late, f"{name}: not served after {AGAIN_S} s; {await said(session, trial.settings.web)}\n{end}"
                await asyncio.sleep(0.1)
            costs[name] = time.monotonic() - carried
            log.info("%s: asked %.1f s, served again after %.1f s", name, carried - started, costs[name])
    assert trial.worker.process.pid == pid
    worst = sorted(costs, key=lambda name: -costs[name])[:5]
    log.info("%s: %d codes; slowest: %s", role, len(costs), [f"{name} {costs[name]:.1f} s" for name in worst])
    await trial.sent.events(50)


async def test_nothing_is_lost_when_every_role_meets_errors(trial: Trial) -> None:
    """Some codes of each kind, returned while events flow, leave the tables that the events alone give."""
    await trial.start("broker_answers")
    orders = Orders(trial)
    for ways in ROLES.values():
        for way in ways:
            for code in (OUT_OF_ORDER, -1, 47, 10, 29, 3):
                steps = [(api, code if given is None else given) for api, given in way]
                await orders.carried_out(steps, lambda: trial.sent.events(5))
    await trial.sent.events(100)
    await trial.sent.check(timeout_s=120)
