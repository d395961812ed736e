"""Tasks that take a cancellation for something else still end, and a slow end says what it waits for."""

from __future__ import annotations

import asyncio
import logging

import pytest

from agents import ending, tasks
from agents.ending import pending
from agents.tasks import Tasks


def failed(error: BaseException) -> None:
    raise AssertionError(error)


async def test_a_task_that_swallows_its_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks, "AGAIN_S", 0.01)
    swallowed = []

    async def deaf() -> None:
        while True:
            try:
                await asyncio.sleep(3_600)
            except asyncio.CancelledError:
                swallowed.append(True)
                if len(swallowed) > 2:
                    raise

    running = Tasks(failed)
    running.start("deaf", deaf())
    running.start("other", asyncio.sleep(3_600))
    await asyncio.sleep(0)
    with caplog.at_level(logging.WARNING):
        await running.cancel()
    assert len(swallowed) == 3
    assert "deaf" in caplog.text
    assert "other" not in caplog.text


async def test_tasks_that_end_with_an_error_while_they_are_cancelled_do_not_hinder_the_end() -> None:
    async def fails() -> None:
        try:
            await asyncio.sleep(3_600)
        finally:
            raise OSError

    seen: list[BaseException] = []
    running = Tasks(seen.append)
    running.start("fails", fails())
    await asyncio.sleep(0)
    await running.cancel()
    await asyncio.sleep(0)
    assert [type(error) for error in seen] == [OSError]


async def test_what_is_pending_is_named_with_where_it_waits() -> None:
    async def inner() -> None:
        await asyncio.Event().wait()

    async def outer() -> None:
        await inner()

    waiting = asyncio.create_task(outer(), name="waits")
    await asyncio.sleep(0)
    (line,) = (line for line in pending() if line.startswith("waits"))
    assert "outer" in line
    assert line.index("outer") < line.index("inner") < line.index("wait", line.index("inner"))
    waiting.cancel()
    (line,) = (line for line in pending() if line.startswith("waits"))
    assert "cancelled 1 times" in line


async def test_a_slow_end_is_explained_before_it_is_forced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forced = []
    monkeypatch.setattr("faulthandler.dump_traceback_later", lambda seconds, **how: forced.append((seconds, how)))
    monkeypatch.setattr(ending, "SAID_BEFORE_S", 25.0)
    waiting = asyncio.create_task(asyncio.Event().wait(), name="never done")
    with caplog.at_level(logging.ERROR):
        ending.end_within(25.0)
        await asyncio.sleep(0.01)
    assert forced == [(25.0, {"exit": True})]
    assert "never done" in caplog.text
    waiting.cancel()
