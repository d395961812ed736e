"""`riffle tables` reports a server that refuses, whatever its answer looks like."""

from __future__ import annotations

import pytest

from agents.cli import asking, tables
from agents.web.caller import ANYONE
from schemas.errors import NotReady


@pytest.mark.parametrize("body", [[], "no", None, {}, {"error": "no"}, {"error": {}}, {"error": {"message": "no token"}}])
@pytest.mark.parametrize("status", [401, 403, 429, 200, 500])
def test_any_refusal_is_reported(monkeypatch: pytest.MonkeyPatch, status: int, body: object) -> None:
    monkeypatch.setattr(asking, "ask", lambda *_, **__: asking.Answer(status, body))
    with pytest.raises(
        NotReady, match="no token" if status in {401, 403, 429} and "no token" in str(body) else "HTTP|worker"
    ) as caught:
        tables._asked("http://127.0.0.1:1", ANYONE, digests=False)
    assert caught.value.code == "no_worker"
