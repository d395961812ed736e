"""A seeded demonstration dataset: drawn art prints, and users whose tastes drift.

Every print has a motif, a palette and a mood. They determine its latent vector, title, text and picture, so that content
predicts which users like it. Users have latent vectors that drift over ninety days. Views and likes follow the inner product
of the two vectors, with popularity and noise added. A sixth of the prints appears late.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = ["build_builtin"]

ITEMS, PEOPLE, DAYS, EVENTS = 2_000, 1_000, 90, 70_000
"EVENTS sets the rate: EVENTS / 1.3 are drawn, and some 48,000 remain, because no user gets an item twice."
START_MS = 1_760_000_000_000
DAY_MS = 86_400_000
SIZE = 96

MOTIFS = ("mountain", "harbour", "orchard", "city", "lighthouse", "desert", "forest", "river", "moon", "garden")
PALETTES = {
    "amber": ((122, 62, 18), (236, 170, 60), (255, 232, 190)),
    "cobalt": ((14, 30, 84), (52, 104, 200), (200, 222, 250)),
    "moss": ((26, 48, 24), (98, 142, 70), (224, 236, 204)),
    "rose": ((92, 20, 46), (222, 98, 130), (252, 220, 226)),
    "slate": ((30, 34, 42), (112, 122, 138), (226, 230, 236)),
    "teal": ((6, 54, 60), (40, 150, 150), (206, 242, 236)),
}
MOODS = ("quiet", "stormy", "festive", "lonely", "playful", "solemn")
TEXTS = (
    "A {mood} print of a {motif} in {palette} tones, cut by hand and pulled in a small edition.",
    "The {motif} at dusk, {mood} and close, printed in three layers of {palette} ink.",
    "{palette} light over a {motif}; a {mood} sheet for a narrow wall.",
)
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
    rows = []
    for n in range(ITEMS):
        names = {"motif": MOTIFS[motif[n]], "palette": tuple(PALETTES)[palette[n]], "mood": MOODS[mood[n]]}
        _draw(rng, names["palette"], int(motif[n]), int(mood[n])).save(folder / "images" / f"p{n:04d}.png")
        text = TEXTS[int(rng.integers(len(TEXTS)))].format(**names)
        rows.append(
            {
                "item_id": f"p{n:04d}",
                "title": f"{names['mood'].title()} {names['motif']} no. {n}",
                "text": text[0].upper() + text[1:],
                "categories": [names["motif"], names["palette"]],
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


def _draw(rng: np.random.Generator, palette: str, motif: int, mood: int) -> Image.Image:
    dark, middle, light = PALETTES[palette]
    image = Image.new("RGB", (SIZE, SIZE), light if mood != 1 else middle)
    draw = ImageDraw.Draw(image)
    ground = int(rng.integers(56, 72))
    x, width = int(rng.integers(28, 68)), int(rng.integers(14, 30))
    draw.ellipse((x - 12 + 20, 10, x + 12 + 20, 34), fill=middle if mood != 1 else light)
    draw.rectangle((0, ground, SIZE, SIZE), fill=middle if mood in (0, 2, 4) else dark)
    if motif in (0, 5):
        draw.polygon([(x - 2 * width, ground), (x, ground - 2 * width + motif), (x + 2 * width, ground)], fill=dark)
    elif motif in (1, 4):
        draw.rectangle((x - 4, ground - 2 * width, x + 4, ground + 6), fill=dark)
        draw.rectangle((x - 7, ground - 2 * width - 8, x + 7, ground - 2 * width), fill=middle if motif == 4 else dark)
    elif motif in (2, 6, 9):
        for k in range(3 + motif // 3):
            at = (x + 17 * k) % SIZE
            draw.rectangle((at - 1, ground - 16, at + 1, ground + 4), fill=dark)
            draw.ellipse((at - 8, ground - 28, at + 8, ground - 12), fill=dark if motif == 6 else middle, outline=dark)
    elif motif == 3:
        for k in range(6):
            height = int(rng.integers(10, 44))
            draw.rectangle((8 + 14 * k, ground - height, 18 + 14 * k, ground), fill=dark)
    elif motif == 7:
        draw.polygon([(x, ground), (x + 8, ground), (x + 2 * width, SIZE), (x - width, SIZE)], fill=light, outline=dark)
    else:
        draw.ellipse((x - width, 18, x + width, 18 + 2 * width), fill=light, outline=dark, width=3)
    if mood in (1, 3, 5):
        for k in range(0, SIZE, 12 - mood):
            draw.line((k, ground + 4, k + 8, SIZE), fill=light if mood == 1 else middle)
    return image
