"""`riffle recommend` against a running worker: every user has a slate, in a file that is whole or absent."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import polars as pl
import pytest
from click.testing import CliRunner
from interrupting import INTERRUPTIBLE
from small_shop import shop, write_shop

from agents.cli.loading import load
from agents.cli.recommend import recommend
from agents.cli.slate_files import COLUMNS
from schemas.records import Interaction, Item
from schemas.settings import Settings

pytestmark = pytest.mark.integration
PEOPLE = 250


def run(command: Any, settings: Settings, *arguments: str, code: int = 0) -> tuple[str, str]:
    done = CliRunner().invoke(command, arguments, env=settings.environment(), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def made() -> tuple[list[Item], list[Interaction]]:
    return shop(n_people=PEOPLE, most=10)


@pytest.fixture
async def loaded(worker: Settings, made: tuple[list[Item], list[Interaction]], tmp_path: Path) -> Settings:
    """A worker that has applied the events of the shop, and lists every user."""
    folder = write_shop(tmp_path / "shop", *made)
    out, _ = await asyncio.to_thread(run, load, worker, str(folder), "--json")
    assert json.loads(out.splitlines()[-1])["applied"] == len(made[1])
    await until(lambda: _lists_everybody(worker))
    return worker


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(60):
        while not await holds():  # noqa: ASYNC110 - it is seen from outside
            await asyncio.sleep(0.1)


async def users_of(settings: Settings) -> list[str]:
    found: list[str] = []
    async with aiohttp.ClientSession(settings.web) as http:
        for number in range(settings.partitions):
            async with http.get(f"/v1/users?partition={number}") as response:
                assert response.status == 200
                found += (await response.json())["users"]
    return found


async def _lists_everybody(settings: Settings) -> bool:
    return len(await users_of(settings)) == PEOPLE


async def metrics_of(settings: Settings) -> str:
    async with aiohttp.ClientSession(settings.web) as http, http.get("/metrics") as response:
        return await response.text()


async def test_every_user_has_a_slate(loaded: Settings, made: tuple[list[Item], list[Interaction]], tmp_path: Path) -> None:
    items, events = made
    people = {event.user_id for event in events}
    seen = {(event.user_id, event.item_id) for event in events}
    left = {user: min(len(items) - sum(1 for other, _ in seen if other == user), 5) for user in people}

    async def written(name: str, *more: str) -> dict[str, Any]:
        out, _ = await asyncio.to_thread(run, recommend, loaded, "--out", str(tmp_path / name), "--json", *more)
        facts: dict[str, Any] = json.loads(out.splitlines()[-1])
        assert (facts["failed"], facts["releases"]) == (0, {"none": facts["answered"]})
        return facts

    facts = await written("all.parquet", "--users", "all", "--k", "5")
    frame = pl.read_parquet(tmp_path / "all.parquet")
    assert frame.schema == COLUMNS
    assert (facts["users"], facts["answered"], facts["items"]) == (PEOPLE, PEOPLE, len(frame))
    assert dict(frame.group_by("user_id").len().iter_rows()) == left, "each user has every item that is left, up to five"
    assert not set(frame.select("user_id", "item_id").iter_rows()) & seen
    ranks = frame.group_by("user_id").agg("rank")["rank"].to_list()
    assert all(found == list(range(1, len(found) + 1)) for found in ranks)
    assert frame.group_by("user_id").agg(pl.col("request_id").n_unique())["request_id"].unique().to_list() == [1]
    assert frame["as_of_event_time"].min() > 0  # type: ignore[operator]

    await written("again.parquet", "--users", "all", "--k", "5")
    again = pl.read_parquet(tmp_path / "again.parquet")
    assert again["user_id"].to_list() == frame["user_id"].to_list(), "the same users in the same order"

    # a deadline that most requests of the first lists cannot meet: they are asked for again
    late = await written("late.jsonl", "--users", "all", "--k", "5", "--deadline-ms", "25", "--parallel", "8")
    slates = [json.loads(line) for line in (tmp_path / "late.jsonl").read_text().splitlines()]
    assert late["answered"] == PEOPLE
    assert [slate["user_id"] for slate in slates] == list(dict.fromkeys(frame["user_id"]))
    assert {slate["user_id"]: len(slate["items"]) for slate in slates} == left

    names = pl.DataFrame({"user_id": [*sorted(people), "unheard-of"], "mail": "x"})
    names.write_csv(tmp_path / "names.csv")
    facts = await written("some.jsonl", "--users", str(tmp_path / "names.csv"), "--category", "lamp")
    slates = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text().splitlines()]
    assert [slate["user_id"] for slate in slates] == names["user_id"].to_list()
    kinds = {item.item_id: item.categories for item in items}
    assert all("lamp" in kinds[item["item_id"]] for slate in slates for item in slate["items"])
    assert hidden(tmp_path) == [], "nothing else is left"


async def test_who_was_erased_is_not_listed(loaded: Settings) -> None:
    before = await users_of(loaded)
    async with aiohttp.ClientSession(loaded.web) as http:
        async with http.delete("/v1/users/u00") as response:
            token = (await response.json())["token"]
        params = {"after": f"{token['partition']}:{token['offset']}", "deadline_ms": "10000"}
        async with http.get("/v1/recommend/u00", params=params) as response:
            assert "stale" not in (await response.json())["degraded"]
    assert sorted(await users_of(loaded)) == sorted(set(before) - {"u00"}), "at once"

    async def committed() -> bool:
        durable = 'riffle_durable_offset{partition="' + str(token["partition"]) + '"} '
        found = re.search(f"^{re.escape(durable)}(.*)$", await metrics_of(loaded), re.MULTILINE)
        return found is not None and float(found[1]) >= token["offset"]

    await until(committed)
    assert sorted(await users_of(loaded)) == sorted(set(before) - {"u00"}), "and after the commit"


async def test_an_interrupted_run_leaves_the_file_as_it_was(loaded: Settings, tmp_path: Path) -> None:
    out, names = tmp_path / "slates.parquet", tmp_path / "names.txt"
    out.write_text("the earlier file")
    names.write_text("".join(f"new-{n}\n" for n in range(200_000)))
    command = [*INTERRUPTIBLE, sys.executable, "-c", "from agents.cli import main; main()", "recommend"]
    process = await asyncio.create_subprocess_exec(
        *(*command, "--users", str(names), "--out", str(out), "--json"),
        env={**os.environ, **loaded.environment()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    async def under_way() -> bool:
        found = re.search(r'^riffle_http_list_requests_total\{outcome="slate"\} (\S+)$', await metrics_of(loaded), re.MULTILINE)
        return found is not None and float(found[1]) >= 300

    await until(under_way)
    process.send_signal(signal.SIGINT)
    said, error = await asyncio.wait_for(process.communicate(), 60)
    facts = json.loads(said.decode().splitlines()[-1])
    assert process.returncode == 130
    assert facts["error"]["code"] == "interrupted"
    assert 0 < facts["answered"] < facts["users"] == 200_000
    assert f"{facts['answered']} of 200000 users were answered" in error.decode()
    assert "Traceback" not in error.decode()
    assert out.read_text() == "the earlier file"
    assert hidden(tmp_path) == []
