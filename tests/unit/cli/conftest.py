"""Commands in these tests do not look at the stack that happens to run on this machine."""

from __future__ import annotations

import pytest

from agents.cli import own


@pytest.fixture(autouse=True)
def of_no_stack(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose server listens on a default port is of no interest, but in `test_own`."""
    if request.node.path.name != "test_own.py":
        monkeypatch.setattr(own, "require_own", lambda _: None)
