"""A seeded demonstration dataset: drawn art prints, and users whose tastes drift.

Every print has a motif, a palette and a mood (`models.dataset.scenes`). They determine its latent vector, title, text and
picture, so that content predicts which users like it. Users have latent vectors that drift over ninety days. Views and likes
follow the inner product of the two vectors, with popularity and noise added. A sixth of the prints appears late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.dataset.prints import words
from models.dataset.scenes import MOODS, MOTIFS, PALETTES, Print, draw

__all__ = ["build_builtin"]

ITEMS, PEOPLE, DAYS, EVENTS = 2_000, 1_000, 90, 70_000
"EVENTS sets the rate: EVENTS / 1.3 are drawn, and some 44,000 remain, because no user gets an item twice."
START_MS = 1_760_000_000_000
DAY_MS = 86_400_000
DIMENSIONS = len(MOTIFS) + len(PALETTES) + len(MOODS)


def build_builtin(folder: Path, seed: int = 7, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the dataset to `folder` unless it exists there; the same seed gives the same bytes of data.

    `progress` is called with the numbers of pictures (done, all). Returns the folder.
    """
    if (folder / "dataset.toml").exists():
        return folder
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    motif, palette, mood = (rng.integers(0, len(of), ITEMS) for of in (MOTIFS, tuple(PALETTES), MOODS))
    appears = np.where(rng.random(ITEMS) < 1 / 6, rng.integers(20, DAYS - 5, ITEMS), 0)
    rows, titles = [], Counter[str]()
    for n in range(ITEMS):
        made = Print(MOTIFS[motif[n]], tuple(PALETTES)[palette[n]], MOODS[mood[n]])
        draw(made, rng).save(folder / "images" / f"p{n:04d}.png")
        title, text = words(made, rng)
        titles[title] += 1
        rows.append(
            {
                "item_id": f"p{n:04d}",
                "title": title if titles[title] == 1 else f"{title}, no. {titles[title]}",
                "text": text,
                "categories": [made.motif, made.palette],
                "image": f"images/p{n:04d}.png",
                "price": float(np.round(rng.gamma(4.0, 12.0) + 9, 2)),
                "available": True,
                "published_at": START_MS + int(appears[n]) * DAY_MS,
            }
        )
        if progress is not None and n % 50 == 49:
            progress(n + 1, ITEMS)
    pl.DataFrame(rows).write_parquet(folder / "items.parquet")
    _events(rng, motif, palette, mood, appears).write_parquet(folder / "events.parquet")
    (folder / "dataset.toml").write_text('name = "prints"\npositive = "action == \'like\'"\n', encoding="utf-8")
    return folder


def _events(
    rng: np.random.Generator,
    motif: NDArray[np.int64],
    palette: NDArray[np.int64],
    mood: NDArray[np.int64],
    appears: NDArray[np.int64],
) -> pl.DataFrame:
    taste = np.zeros((ITEMS, DIMENSIONS))
    every = np.arange(ITEMS)
    taste[every, motif] = 1.4
    taste[every, len(MOTIFS) + palette] = 1.0
    taste[every, len(MOTIFS) + len(PALETTES) + mood] = 0.7
    appeal = rng.gumbel(0.0, 0.7, ITEMS)
    people = rng.normal(0.0, 1.6, (PEOPLE, DIMENSIONS))
    active = rng.pareto(1.5, PEOPLE) + 0.3
    per_day = rng.poisson(np.outer(active / active.sum(), np.full(DAYS, EVENTS / DAYS / 1.3)))
    out: dict[str, list[object]] = {
        name: [] for name in ("event_id", "user_id", "item_id", "action", "event_time", "session_id")
    }
    seen: list[set[int]] = [set() for _ in range(PEOPLE)]
    for day in range(DAYS):
        people = 0.995 * people + rng.normal(0.0, 0.16, people.shape)
        here = appears <= day
        for person in np.flatnonzero(per_day[:, day]).tolist():
            want = taste @ people[person] + appeal + np.where(here, 0.0, -np.inf)
            chosen = np.argsort(-(want + rng.gumbel(0.0, 1.0, ITEMS)))[: 6 * int(per_day[person, day])]
            fresh = [int(i) for i in chosen if int(i) not in seen[person]][: int(per_day[person, day])]
            time = START_MS + day * DAY_MS + int(rng.integers(0, DAY_MS - 3_600_000))
            for item in fresh:
                seen[person].add(item)
                time += int(rng.integers(5_000, 90_000))
                likes = rng.random() < 1 / (1 + np.exp(-(float(taste[item] @ people[person]) - 2.0)))
                out["event_id"].append(f"e{len(out['event_id']):06d}")
                out["user_id"].append(f"u{person:04d}")
                out["item_id"].append(f"p{item:04d}")
                out["action"].append("like" if likes else "view")
                out["event_time"].append(time)
                out["session_id"].append(f"s{person:04d}-{day}")
    return pl.DataFrame(out).sort("event_time", maintain_order=True)
