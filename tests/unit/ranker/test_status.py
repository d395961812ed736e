"""What a ranking process, and a worker that hands requests over, say when a release is not usable."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agents.findings import Health
from agents.ranker.app import group_of
from agents.ranker.releases import RankerSlot
from agents.ranker.status import Status
from agents.requests.rank_away import RankingAway
from schemas.settings import Settings


def status_of(slot: RankerSlot) -> Status:
    """Return the status of a process that has joined its group and read the announcements."""
    broker: Any = SimpleNamespace(found=True)
    collector: Any = SimpleNamespace(busy_since=None)
    metrics: Any = None
    found = Status(Settings(), slot, collector, broker, Health(), metrics, lambda: 0.0)
    found.assigned, found.caught_up = frozenset({0}), True
    return found


def test_a_process_that_would_refuse_every_task_is_not_ready_and_says_why() -> None:
    slot = RankerSlot()
    status = status_of(slot)
    assert status.ready() == (True, {}), "without an announcement there are no tasks"
    slot.refused["20260101-abc"] = "there is no folder /releases/20260101-abc"
    ready, reasons = status.ready()
    assert not ready
    assert "20260101-abc: there is no folder" in str(reasons["releases"])


@pytest.mark.parametrize(
    ("away", "refused", "said"),
    [(0, "release", ""), (2, "", "do not answer on 2 partitions"), (1, "release", "refuse tasks (release) on 1 partitions")],
)
async def test_the_warning_tells_refusals_from_silence(away: int, refused: str, said: str) -> None:
    health = Health()
    remote: Any = SimpleNamespace(away=away, refused=refused)
    await RankingAway(remote, health).look()
    assert said in health.current().get("ranking", "")
    assert bool(said) == ("ranking" in health.current())


def test_processes_with_another_app_id_share_the_tasks_of_a_topic() -> None:
    assert group_of(Settings(app_id="one")) == group_of(Settings(app_id="other"))
    assert group_of(Settings(topic_prefix="a.")) != group_of(Settings(topic_prefix="b."))
