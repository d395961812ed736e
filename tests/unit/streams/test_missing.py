"""Gaps in offsets: deleted records are distinguished from ends of transactions."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.settings import Settings
from streams.state.partitions import Flush, PartitionState
from streams.state.rocks import PartitionStore, block_cache


def state(folder: Path, *, reports: bool = True) -> PartitionState:
    async def nothing() -> Flush | None:
        return None

    return PartitionState(
        Settings(home=folder),
        PartitionStore(folder / "0", block_cache(8)),
        source="events",
        changelog="changelog",
        partition=0,
        group="g",
        take=nothing,
        reports_missing=reports,
    )


def read(made: PartitionState, offsets: list[int]) -> None:
    for offset in offsets:
        made.note_gap(offset)
        made.applied = offset


@given(st.lists(st.integers(1, 2), max_size=40), st.integers(0, 100))
def test_ends_of_transactions_are_no_deleted_records(steps: list[int], begin: int) -> None:
    made = state(Path("unused"))
    offsets = [sum(steps[: n + 1]) for n in range(len(steps))]
    read(made, [0, *offsets])
    made.check_gaps(min(begin, made.applied + 2))
    assert made.missing is None


@pytest.mark.parametrize(
    ("offsets", "begin", "missing"),
    [
        ([0, 1, 2], 10, (3, 10)),  # no record since
        ([0, 1, 10, 11], 10, (2, 10)),  # the new records begin where the topic does
        ([0, 1, 10, 11], 0, None),  # the topic holds them: they were no records
        ([0, 1, 2], 4, None),  # the end of a transaction
        ([], 0, None),
    ],
)
def test_records_that_were_deleted_are_found(tmp_path: Path, offsets: list[int], begin: int, missing: object) -> None:
    made = state(tmp_path)
    read(made, offsets)
    made.check_gaps(begin)
    assert made.missing == missing
    made.check_gaps(begin)
    assert made.missing == missing


def test_a_topic_that_is_kept_for_a_while_only_reports_nothing(tmp_path: Path) -> None:
    made = state(tmp_path, reports=False)
    read(made, [0, 1])
    made.check_gaps(1_000)
    assert made.missing is None
