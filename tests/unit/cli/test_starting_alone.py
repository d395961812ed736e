"""Only one `riffle up` at a time works on a home, and it says which processes will have no work."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.cli.starting import _alone, without_work
from agents.processes import RANKING, WORKER, name_of
from schemas.errors import NotReady
from schemas.settings import Settings


def test_a_second_up_is_told_to_wait_and_a_later_one_may_begin(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with _alone(settings):  # noqa: SIM117 - the second one within the first
        with pytest.raises(NotReady, match="another `riffle up` is under way"), _alone(settings):
            raise AssertionError
    with _alone(settings):
        pass


@given(partitions=st.integers(1, 8), workers=st.integers(1, 12), ranking=st.integers(0, 12))
def test_processes_beyond_the_partitions_are_told_and_no_others(partitions: int, workers: int, ranking: int) -> None:
    names = [name_of(role, n) for role, number in ((WORKER, workers), (RANKING, ranking)) for n in range(1, number + 1)]
    found = without_work(Settings(partitions=partitions), names)
    told = [("workers", workers), ("ranking processes", ranking)]
    assert [text.split(" for ")[0] for text in found] == [f"{n} {title}" for title, n in told if n > partitions]
    idle = [int(text.split(": ")[1].split()[0]) for text in found]
    assert idle == [n - partitions for _, n in told if n > partitions]
