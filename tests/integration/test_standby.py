"""Two workers: standby copies follow; owner, standby and changelog agree; a standby takes over when the owner is killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import free_port
from stream_check import Sent

from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration


def tables(*workers: Settings) -> list[dict[str, Any]]:
    """Return the result of `riffle tables --verify`."""
    urls = [word for settings in workers for word in ("--worker", settings.web)]
    environment = {**os.environ, **workers[0].environment()}
    command = [sys.executable, "-c", "from agents.cli import main; main()", "tables", "--verify", "--json", *urls]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = list(json.loads(ran.stdout.splitlines()[-1])["tables"])
    assert ran.returncode == (not found or any(facts["verdict"] in {"DIFFERS", "not compared"} for facts in found)), ran.stderr
    return found


def roles(settings: Settings) -> dict[str, set[int]]:
    with urllib.request.urlopen(f"{settings.web}/v1/tables", timeout=5) as response:
        found = json.load(response)["tables"]
    users = [facts for facts in found if facts["table"] == "users"]
    return {role: {facts["partition"] for facts in users if facts["role"] == role} for role in ("owner", "standby")}


async def test_standbys_agree_with_owner_and_changelog_and_take_over(
    fresh: Settings, tmp_path: Path, worker_of: Callable[[Settings], Any]
) -> None:
    fresh = replace(fresh, session_timeout_s=6.0)
    await ensure_topics(fresh)
    sent = Sent(fresh, seed=3)
    await sent.start()
    other = replace(fresh, home=tmp_path / "other", web_port=free_port())
    other.home.mkdir()
    first, second = worker_of(fresh).start(), worker_of(other)
    await sent.events(1_000)
    owned_before = roles(fresh)["owner"]
    second.start()
    assert wait_until(lambda: len(roles(fresh)["owner"]) == len(roles(other)["owner"]) == 2, 30)
    assert roles(fresh)["owner"] <= owned_before
    assert wait_until(lambda: roles(fresh)["standby"] == roles(other)["owner"], 30)
    await sent.events(2_000)
    await sent.check()

    def agreed() -> bool:
        found = tables(fresh, other)
        assert not [facts for facts in found if facts["verdict"] == "DIFFERS"]
        return len(found) == 16 and all(facts["verdict"] == "agrees" for facts in found)

    assert wait_until(agreed, 60)
    first.kill()
    await sent.events(500)
    await sent.stop()
    assert wait_until(lambda: roles(other)["owner"] == {0, 1, 2, 3}, 60)
    await sent.check()
    restored = re.findall(r"users-\d ready at offset \d+: (\d+) records from the changelog", second.log.read_text())
    assert len(restored) == 4
    # the standby had the rows already: only records after its last fetch had to be replayed
    total = sum(facts["rows"] for facts in tables(other) if facts["table"] == "users")
    assert sum(map(int, restored[2:])) < total / 2
