"""Only one `riffle up` at a time works on a home."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents.cli.starting import _alone
from schemas.errors import NotReady
from schemas.settings import Settings


def test_a_second_up_is_told_to_wait_and_a_later_one_may_begin(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    with _alone(settings):  # noqa: SIM117 - the second one within the first
        with pytest.raises(NotReady, match="another `riffle up` is under way"), _alone(settings):
            raise AssertionError
    with _alone(settings):
        pass
