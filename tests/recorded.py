"""Ten thousand requests in a made world, and the answers to them that were recorded.

To record the answers of the code at hand, which replaces those of the code before:

    PYTHONPATH=.:tests python tests/recorded.py tests/unit/pipeline/recorded.npz
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from fake_model import FakeModel
from numpy.typing import NDArray

from models.pipeline.clock import after_all
from models.pipeline.pipeline import CandidatePipeline, PipelineSettings
from models.pipeline.slot import ModelSlot
from models.state.rows import UserRecord
from schemas.records import Interaction, Item, Request, Slate
from training.replay.world import SimulatedWorker

__all__ = ["REQUESTS", "answers", "recorded_requests", "world_of"]

REQUESTS, K = 10_000, 8
ITEMS, USERS, EVENTS, CATEGORIES = 900, 150, 6_000, 12
HOUR = 3_600_000


def world_of() -> tuple[SimulatedWorker, dict[str, UserRecord | None]]:
    """Build the catalogue, apply the events and serve a release; returns the worker and the users' records."""
    rng = np.random.default_rng(17)
    words = ("red", "green", "blue", "old", "new", "small", "large", "round")
    items = []
    for n in range(ITEMS):
        title = " ".join(words[w] for w in rng.integers(0, len(words), 3))
        named = tuple(f"c{c}" for c in sorted(set(rng.integers(0, CATEGORIES, rng.integers(0, 4)).tolist())))
        price = None if n % 5 == 0 else float(rng.integers(1, 500))
        published = HOUR * int(rng.integers(1, 500)) if n % 3 else None
        items.append(Item(f"i{n}", title, f"thing {n % 90}", named, None, price, n % 31 != 0, published))
    world = SimulatedWorker(items, ModelSlot())
    world.publish(1_000 * HOUR)
    actions = ("view", "like", "buy", "skip")
    who, what = rng.zipf(1.3, EVENTS) % USERS, rng.zipf(1.2, EVENTS) % ITEMS
    times = np.sort(rng.integers(500 * HOUR, 900 * HOUR, EVENTS))
    how, values = rng.integers(0, 4, EVENTS), rng.integers(0, 6, EVENTS)
    world.apply(
        [
            Interaction(
                f"e{n}", f"u{who[n]}", f"i{what[n]}", int(times[n]), actions[how[n]], float(values[n]) if values[n] else None
            )
            for n in range(EVENTS)
        ]
    )
    for n in range(0, ITEMS, 97):
        world.items.remove(f"i{n}")
    records = {f"u{n}": world.record(f"u{n}") for n in range(USERS)}
    for record in records.values():
        world.know(record)
    world.slot.swap(FakeModel(world.items))
    return world, records


def recorded_requests() -> list[Request]:
    """Requests of every kind: retrieving, within categories, with exclusions or a context, re-ranking; some of strangers."""
    rng = np.random.default_rng(23)
    asked = []
    for n in range(REQUESTS):
        user = f"u{rng.integers(0, USERS)}" if rng.random() < 0.9 else f"stranger{n % 7}"
        kind, ids = rng.random(), tuple(f"i{i}" for i in rng.integers(0, ITEMS + 20, 30))
        asked.append(
            Request(
                f"r{n}",
                user,
                K,
                {"device": "tv", "day": str(n % 7)} if 0.5 < kind < 0.6 else {},
                ids[:10] if 0.6 < kind < 0.75 else (),
                (f"c{n % 14}", f"c{n % 5}")[: 1 + n % 2] if 0.75 < kind < 0.9 else (),
                candidates=ids if kind > 0.85 else None,
            )
        )
    return asked


def answers(world: SimulatedWorker, records: dict[str, UserRecord | None]) -> Iterator[Slate]:
    """Answer the requests in batches of changing sizes, by score alone, so that only ties may exchange places."""
    rng, asked, n = np.random.default_rng(29), recorded_requests(), 0
    pipeline = CandidatePipeline(world.items, PipelineSettings(light_top=60, diversity=0.0), slot=world.slot, clock=after_all)
    while n < len(asked):
        batch = asked[n : n + int(rng.integers(1, 20))]
        n += len(batch)
        yield from pipeline.run(batch, [records.get(request.user_id) for request in batch], [None] * len(batch))


def columns(slates: Iterator[Slate], rows: dict[str, int]) -> dict[str, NDArray[np.generic]]:
    """Write slates as columns: item rows and scores `(REQUESTS, K)`, -1 and 0 beyond a slate's end."""
    items, scores = np.full((REQUESTS, K), -1, np.int16), np.zeros((REQUESTS, K), np.float32)
    for n, slate in enumerate(slates):
        assert slate.degraded == ()
        for place, item in enumerate(slate.items):
            items[n, place], scores[n, place] = rows[item.item_id], item.score
    return {"items": items, "scores": scores}


if __name__ == "__main__":
    made, held = world_of()
    found = columns(answers(made, held), {f"i{n}": n for n in range(ITEMS)})
    np.savez_compressed(Path(sys.argv[1]), items=found["items"], scores=found["scores"])
