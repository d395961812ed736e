"""Workers of a machine map one decoded catalogue: it is written once, found again, and a damaged one is not served."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import WorkerProcess

from agents.broadcast.shelves import shelves_dir
from schemas.records import Item
from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.kafka.produce import produce_items
from streams.kafka.topics import ensure_topics

pytestmark = pytest.mark.integration
ITEMS = 300


def get(settings: Settings, path: str) -> Any:
    with urllib.request.urlopen(settings.web + path, timeout=15) as response:
        return json.load(response)


def shelves(settings: Settings, kind: str, outcome: str) -> float:
    """The counter of shelves."""
    with urllib.request.urlopen(f"{settings.web}/metrics", timeout=15) as response:
        lines = response.read().decode().splitlines()
    wanted = f'riffle_shelves_total{{kind="{kind}",outcome="{outcome}"}}'
    return sum(float(line.split()[-1]) for line in lines if line.startswith(wanted))


def test_the_second_start_maps_what_the_first_one_wrote(
    fresh: Settings, tmp_path: Path, worker_of: Callable[[Settings], WorkerProcess]
) -> None:
    settings = replace(fresh, cache=tmp_path / "cache", shelf_items=100)
    asyncio.run(ensure_topics(settings))
    items = [Item(f"i{n}", f"thing {n % 9}", categories=(f"c{n % 7}",), price=float(n)) for n in range(ITEMS)]
    asyncio.run(produce_items(settings, items))
    paths = ["/v1/items/i7", "/v1/items/i299", "/v1/similar/i8?k=5", "/v1/recommend/nobody?k=5"]

    def answers() -> list[Any]:
        found = [get(settings, path) for path in paths]
        return [found[0], found[1], found[2]["items"], [item["item_id"] for item in found[3]["items"]]]

    first = worker_of(settings).start()
    assert wait_until(lambda: shelves(settings, "items", "written") == 1, 60)
    expected = answers()
    first.stop()
    asyncio.run(produce_items(settings, [Item("i7", "another thing", price=1.0), Item("new", "a thing")]))

    second = worker_of(settings).start()
    assert shelves(settings, "items", "mapped") == 1
    assert get(settings, "/v1/items/i7")["title"] == "another thing", "a record that changed is decoded"
    assert get(settings, "/v1/items/new")["title"] == "a thing"
    assert answers()[1:2] == expected[1:2]
    second.stop()

    (folder,) = shelves_dir(settings).glob("items-*")
    data = (folder / "text.npy").read_bytes()
    (folder / "text.npy").write_bytes(data[: len(data) // 2])
    third = worker_of(settings).start()
    assert shelves(settings, "items", "refused") == 1
    assert get(settings, "/v1/items/i7")["title"] == "another thing"
    assert wait_until(lambda: shelves(settings, "items", "written") == 1, 60), "it is written again"
    assert len(answers()[3]) == 5
    third.stop()
