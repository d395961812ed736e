"""`riffle ask` asks again while a worker is not ready, and never beyond its deadline."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtual_time import VirtualLoop, run_virtually

from agents.cli.ask import MOST_S, PASSING, ask_until
from schemas.errors import DeadlineExceeded, NotReady


class Worker:
    """Is ready from `ready_s` on; each answer takes `answer_s`."""

    def __init__(self, loop: VirtualLoop, ready_s: float, answer_s: float, code: str) -> None:
        self.loop, self.began, self.asked = loop, loop.time(), 0
        self.ready_s, self.answer_s, self.code = ready_s, answer_s, code

    async def ask(self, left_ms: int) -> dict[str, Any]:
        self.asked += 1
        try:
            async with asyncio.timeout(left_ms / 1000):
                await asyncio.sleep(self.answer_s)
        except TimeoutError as exc:
            raise DeadlineExceeded("deadline_exceeded", "late") from exc
        if self.loop.time() - self.began < self.ready_s:
            raise NotReady(self.code, "partition 1 is being restored")
        return {"items": []}


@given(
    ready_s=st.floats(0, 20),
    answer_s=st.floats(0, 3),
    deadline_ms=st.integers(1, 10_000),
    code=st.sampled_from(sorted(PASSING)),
)
def test_a_worker_that_becomes_ready_in_time_is_heard_and_none_is_waited_for_beyond_the_deadline(
    ready_s: float, answer_s: float, deadline_ms: int, code: str
) -> None:
    async def scene(loop: VirtualLoop) -> None:
        worker = Worker(loop, ready_s, answer_s, code)
        try:
            await ask_until(worker.ask, deadline_ms)
        except NotReady as exc:
            assert exc.code == code
            assert f"restored (still so after {deadline_ms} ms" in exc.message
            heard = False
        except DeadlineExceeded:
            assert worker.asked == 1
            heard = False
        else:
            heard = True
        took = loop.time() - worker.began
        assert took <= max(deadline_ms, 1) / 1000 + 0.001
        if heard:
            assert took >= ready_s
        else:
            assert took >= deadline_ms / 1000 - MOST_S - 0.001, "the time is used"
        if ready_s + MOST_S + 2 * answer_s < deadline_ms / 1000:
            assert heard

    run_virtually(scene)


@pytest.mark.parametrize("code", ["broker_unavailable", "not_started", "too_many_waiting"])
def test_what_does_not_pass_is_not_repeated(code: str) -> None:
    async def scene(loop: VirtualLoop) -> None:
        worker = Worker(loop, 1.0, 0.0, code)
        with pytest.raises(NotReady, match=r"being restored$"):
            await ask_until(worker.ask, 5_000)
        assert worker.asked == 1

    run_virtually(scene)
