"""A shop in its first weeks: 30 items, 20 users with different tastes, some hundred events over six weeks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from PIL import Image

from models.units import DAY_MS
from schemas.records import Interaction, Item

POSITIVE = "action == 'like'"
START_MS = 1_790_000_000_000
DAYS = 42
KINDS = ("lamp", "bowl", "blanket", "print", "clock")
STYLES = ("walnut", "linen", "enamel")
COLOURS = ((150, 90, 40), (225, 215, 190), (30, 90, 160))


def shop(seed: int = 0, n_items: int = 30, n_people: int = 20, most: int = 25) -> tuple[list[Item], list[Interaction]]:
    """Items, and views and likes in event-time order: 8 to `most` of each person, who likes some kinds and one style.

    Some things are opened often by everybody; a like follows a view of the same thing within minutes.
    """
    rng = np.random.default_rng(seed)
    kind, style = np.arange(n_items) % len(KINDS), rng.permutation(np.arange(n_items) % len(STYLES))
    items = [
        Item(
            f"p{n:02d}",
            f"{STYLES[style[n]].title()} {KINDS[kind[n]]} no. {n}",
            f"A {KINDS[kind[n]]} of {STYLES[style[n]]}, made by hand.",
            (KINDS[kind[n]], STYLES[style[n]]),
            price=float(np.round(rng.lognormal(3.5, 0.5), 2)),
        )
        for n in range(n_items)
    ]
    popular = 0.5 * rng.normal(size=n_items)
    rows: list[tuple[int, int, int, str]] = []
    for person in range(n_people):
        likes_kind, likes_style = rng.normal(0, 1.2, len(KINDS)), rng.normal(0, 1.2, len(STYLES))
        taste = likes_kind[kind] + likes_style[style] + 0.3 * rng.normal(size=n_items)
        wanted, left = int(rng.integers(8, most + 1)), set(range(n_items))
        times = np.sort(rng.integers(0, DAYS * DAY_MS, wanted))
        mine: list[tuple[int, int, int, str]] = []
        for time in times.tolist():
            if len(mine) >= wanted:
                break
            there = np.asarray(sorted(left if len(left) > 3 else range(n_items)))
            item = int(there[np.argmax(taste[there] + popular[there] + rng.gumbel(size=len(there)))])
            mine.append((time, person, item, "view"))
            if item in left and rng.random() < 1 / (1 + np.exp(-taste[item])):
                mine.append((time + int(rng.integers(20_000, 600_000)), person, item, "like"))
            if rng.random() < 0.9:
                left.discard(item)
        rows += mine
    rows.sort()
    events = [Interaction(f"e{n}", f"u{u:02d}", f"p{i:02d}", START_MS + t, action) for n, (t, u, i, action) in enumerate(rows)]
    return items, events


def write_shop(folder: Path, items: list[Item], events: list[Interaction], images: int = 0) -> Path:
    """As a dataset folder; the first `images` items have a picture."""
    folder.mkdir(parents=True)
    rows = []
    for n, item in enumerate(items):
        row = {
            "item_id": item.item_id,
            "title": item.title,
            "text": item.text,
            "categories": "|".join(item.categories),
            "price": item.price,
            "image": None,
        }
        if n < images:
            row["image"] = f"{item.item_id}.png"
            shade = np.random.default_rng(n).integers(-20, 20, 3)
            pixels = np.clip(np.asarray(COLOURS[STYLES.index(item.categories[1])]) + shade, 0, 255)
            Image.fromarray(np.broadcast_to(pixels.astype(np.uint8), (48, 48, 3)).copy()).save(folder / f"{item.item_id}.png")
        rows.append(row)
    pl.DataFrame(rows, schema_overrides={"image": pl.String}).write_csv(folder / "items.csv")
    fields = ("event_id", "user_id", "item_id", "event_time", "action")
    pl.DataFrame([{name: getattr(e, name) for name in fields} for e in events]).write_csv(folder / "events.csv")
    (folder / "dataset.toml").write_text(f'name = "shop"\npositive = "{POSITIVE}"\n')
    return folder
