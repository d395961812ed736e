"""Slates are served, shown, acted on, archived, joined with their outcomes, and used for training."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from learning_corpus import POSITIVE, SMALL, corpus

from agents.cli.release import promote
from models.archive.files import next_offsets
from models.archive.target import LocalFolder
from models.features.compute import SPEC
from models.release.serving import ServingModel
from schemas.records import Interaction
from schemas.settings import Settings
from streams.embedded.process import wait_until
from streams.kafka.client import RiffleClient
from streams.kafka.produce import produce_events, produce_items
from training.data.corpus import open_corpus
from training.data.events import EventFrame
from training.data.slates.logged import slates_of
from training.data.table import ATTRIBUTION_MS, EventTable, heads_of, of_known_items, vocabulary_of
from training.ranking.fit import train_ranker
from training.release.learned import Learned
from training.replay.replay import replay
from training.replay.world import SimulatedWorker

pytestmark = pytest.mark.integration

LAST_MS = 1_000_000_000 + 3_600_000 * 900


async def shown_and_acted(settings: Settings, learned: Learned) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """Show slates to ten users. Every other user likes the first item, naming the slate, and views the second, naming none."""
    items, events = corpus()
    await produce_items(settings, items)
    tokens = await produce_events(settings, events)
    folder = learned.write(settings.releases_dir, {"gate": {"passed": True}})
    await asyncio.to_thread(promote, settings, folder.name)
    client = RiffleClient(settings)
    await client.start()
    slates: list[dict[str, Any]] = []
    try:
        async with asyncio.timeout(60):
            while len(slates) < 10:
                slate = await client.ask({"user_id": f"u{len(slates)}", "k": 6}, 10_000)
                if slate["release"] == folder.name and slate["as_of"]["offset"] >= tokens[slate["as_of"]["partition"]]:
                    slates.append(slate)
    finally:
        await client.stop()
    acted = []
    for n, slate in enumerate(slates[::2]):
        first, second = slate["items"][0]["item_id"], slate["items"][1]["item_id"]
        liked = Interaction(f"a{n}", slate["user_id"], first, LAST_MS + n, "like", request_id=slate["request_id"])
        acted += [liked, Interaction(f"b{n}", slate["user_id"], second, LAST_MS + n, "view")]
    return slates, {**tokens, **await produce_events(settings, acted)}


async def test_what_was_shown_and_what_followed_reach_the_ranker(
    fresh: Settings, learned: Learned, tmp_path: Path, worker_of: Callable[[Settings], Any]
) -> None:
    settings = replace(fresh, archive_interval_s=0.3)
    await asyncio.to_thread(worker_of(settings).start)
    slates, tokens = await shown_and_acted(settings, learned)
    target = LocalFolder(Path(settings.archive_target))

    def archived() -> bool:
        enough = all(next_offsets(target, "interactions").get(p, 0) > offset for p, offset in tokens.items())
        return enough and sum(next_offsets(target, "impressions").values()) >= len(slates)

    assert await asyncio.to_thread(wait_until, archived, 60)
    found = open_corpus(str(target.root), POSITIVE)
    assert found.logged is not None
    assert isinstance(found.events, EventFrame)
    examples = found.logged(0, LAST_MS + 2 * ATTRIBUTION_MS, 100, {})
    asked = {slate["request_id"] for slate in slates}
    rows = [row for row in examples.to_dicts() if row["request_id"] in asked]
    labels = {(row["request_id"], row["position"]): {pair["key"] for pair in row["labels"]} for row in rows}
    expected = {(slate["request_id"], place): set[str]() for slate in slates for place in range(6)}
    for slate in slates[::2]:
        expected[slate["request_id"], 0], expected[slate["request_id"], 1] = {"like", "positive"}, {"view"}
    assert labels == expected
    assert all(row["feature_spec"] == SPEC for row in rows)

    vocabulary = vocabulary_of(found.events, POSITIVE)
    heads = heads_of(found.events, vocabulary, POSITIVE)
    events = of_known_items(found.events, found.items)
    assert isinstance(events, EventFrame)
    mine = slates_of(examples.filter(pl.col("request_id").is_in(list(asked))), events, heads)
    assert len(mine) == len(slates)
    assert {one.place for one in mine} <= set(range(800, 901)), "before what followed, after what was reflected"
    table = EventTable.of(events, found.items, vocabulary, heads)
    model = ServingModel(learned.release())
    replayed = replay(SimulatedWorker(found.items), model, events, table, 600, 30, 0, None, mine)
    assert len(replayed.examples) == 30 + len(slates)
    for one in mine:
        assert one.features is not None
        n = next(n for n in range(len(replayed.examples)) if np.array_equal(replayed.examples.features[n, :6], one.features))
        assert replayed.examples.valid[n].sum() == 6
        assert np.array_equal(replayed.examples.labels[n, :6], one.labels)
        assert np.exp(replayed.examples.correction[n, :6]) == pytest.approx(one.weight, rel=1e-5)
    ranker = train_ranker(replayed.examples, replace(SMALL.ranker, epochs=1))
    assert all(bool(np.isfinite(p.detach().numpy()).all()) for p in ranker.parameters())

    ran = subprocess.run(  # noqa: ASYNC221
        [sys.executable, "-m", "training", "examples", str(target.root), "--out", str(tmp_path / "out"), "--json"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    facts = json.loads(ran.stdout.splitlines()[-1])
    assert facts["examples"] >= 60
    assert facts["followed"] >= 10
