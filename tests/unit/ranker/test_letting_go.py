"""Before its partitions go to another process, a process answers what it has read, and commits."""

from __future__ import annotations

import asyncio
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import CommitFailedError
from faust.types import TP

from agents.findings import Health, code_of
from agents.metrics import Metrics
from agents.ranker.app import RankerApp

TASKS = TP("riffle.rank", 1)


def let_go(failures: int) -> tuple[list[str], Metrics]:
    """Let a process with one read partition go whose first commits fail; returns what it did in order."""
    did: list[str] = []
    metrics = Metrics()

    async def commit(due: dict[TP, int]) -> None:
        assert due == {TASKS: 5}
        if did.count("failed") < failures:
            did.append("failed")
            raise CommitFailedError
        did.append("committed")

    async def idle(_timeout_s: float) -> bool:
        did.append("answered")
        return True

    async def settled(_timeout_s: float) -> bool:
        did.append("acknowledged")
        return True

    parts = SimpleNamespace(
        collector=SimpleNamespace(idle=idle), answering=SimpleNamespace(settled=settled), metrics=metrics, health=Health()
    )
    app: Any = SimpleNamespace(parts=parts, _taken={TASKS: 5}, _committed={}, consumer=SimpleNamespace(commit_offsets=commit))
    app._commit = partial(RankerApp._commit, app)
    asyncio.run(RankerApp.let_go(app))
    assert not app._taken
    assert not app._committed
    return did, metrics


@pytest.mark.parametrize(("failures", "commits"), [(0, ["committed"]), (1, ["failed", "committed"]), (9, ["failed", "failed"])])
def test_a_commit_that_fails_is_tried_once_more_before_partitions_go(failures: int, commits: list[str]) -> None:
    did, metrics = let_go(failures)
    assert did == ["answered", "acknowledged", *commits]
    assert metrics.commits_failed.value(code=code_of(CommitFailedError())) == did.count("failed")
