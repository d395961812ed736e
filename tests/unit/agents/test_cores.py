"""The number of cores, by affinity and by a container's limit, and where graphs run by it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agents.cores import cores
from agents.requests.ranking import threaded


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))


@pytest.mark.usefixtures("many")
@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "1600000 100000"}, 8),
        ({"cpu.max": "not a limit"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "0"}, 8),
    ],
)
def test_cores_are_those_of_the_affinity_up_to_the_limit_of_the_container(
    tmp_path: Path, files: dict[str, str], expected: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    assert cores(tmp_path) == expected


@pytest.mark.parametrize(
    ("graphs", "available", "expected"),
    [("auto", 1, False), ("auto", 2, False), ("auto", 2.5, True), ("loop", 16, False), ("thread", 1, True)],
)
def test_graphs_run_beside_the_event_loop_where_there_are_cores_for_it(graphs: str, available: float, expected: bool) -> None:
    assert threaded(graphs, available) is expected
