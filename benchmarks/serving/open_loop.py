"""Requests that are sent when they are due, regardless of earlier ones."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from serving.summary import Answer

__all__ = ["closed_loop", "open_loop", "paced"]

Ask = Callable[[int], Awaitable[Answer]]


async def paced(rate: float, seconds: float, send: Callable[[int, float], Awaitable[None]]) -> None:
    """Call `send` with a number and the time at which it was due, `rate` times a second."""
    start = time.perf_counter()
    for n in range(round(rate * seconds)):
        due_s = start + n / rate
        if (wait := due_s - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        await send(n, due_s)


async def open_loop(rate: float, seconds: float, ask: Ask) -> list[Answer]:
    """Ask `rate` times a second. Latency counts from the time at which a request was due."""
    tasks: list[asyncio.Task[Answer]] = []

    async def one(n: int, due_s: float) -> Answer:
        answer = await ask(n)
        return replace(answer, due_s=due_s, ms=(time.perf_counter() - due_s) * 1e3)

    async def send(n: int, due_s: float) -> None:
        tasks.append(asyncio.create_task(one(n, due_s)))

    await paced(rate, seconds, send)
    return list(await asyncio.gather(*tasks))


async def closed_loop(seconds: float, ask: Ask) -> list[Answer]:
    """Ask with one request in flight."""
    answers: list[Answer] = []
    until = time.perf_counter() + seconds
    while (start := time.perf_counter()) < until:
        answer = await ask(len(answers))
        answers.append(replace(answer, due_s=start, ms=(time.perf_counter() - start) * 1e3))
    return answers
