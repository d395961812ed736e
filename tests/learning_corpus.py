"""A small corpus with learnable tastes, and a release trained on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

from schemas.records import Interaction, Item
from training.data.corpus import Corpus
from training.learn import learn
from training.recipe import LearnSettings, RankerSettings, TowerSettings
from training.release.learned import Learned

POSITIVE = "action == 'like'"
COLOURS = ("red", "green", "blue")


def corpus(seed: int = 0, n_items: int = 40, n_users: int = 30, n_events: int = 900) -> tuple[list[Item], list[Interaction]]:
    """People like one colour; what they open is mostly of it, what they like always is."""
    rng = np.random.default_rng(seed)
    items = [
        Item(f"i{n}", f"{COLOURS[n % 3]} thing {n}", f"made of {COLOURS[n % 3]} glass", (COLOURS[n % 3],))
        for n in range(n_items)
    ]
    events, seen = [], set()
    for n in range(n_events):
        user = int(rng.integers(n_users))
        of_colour = np.flatnonzero(np.arange(n_items) % 3 == user % 3)
        item = int(rng.choice(of_colour)) if rng.random() < 0.8 else int(rng.integers(n_items))
        action = "like" if item % 3 == user % 3 and (user, item) not in seen and rng.random() < 0.7 else "view"
        seen.add((user, item))
        value = float(rng.integers(1, 6)) if n % 4 else None
        events.append(Interaction(f"e{n}", f"u{user}", f"i{item}", 1_000_000_000 + 3_600_000 * n, action, value))
    return items, events


def contrary_corpus(n_items: int = 120, n_users: int = 60, n_events: int = 3_000) -> tuple[list[Item], list[Interaction]]:
    """People open things of one colour and like those of the next: only who learns from likes serves them well."""
    rng = np.random.default_rng(0)
    items, events = corpus(n_items=n_items, n_events=0)[0], []
    for n in range(n_events):
        user, likes = int(rng.integers(n_users)), bool(rng.random() < 0.25)
        item = int(rng.choice(np.flatnonzero(np.arange(n_items) % 3 == (user + likes) % 3)))
        events.append(Interaction(f"e{n}", f"u{user}", f"i{item}", 1_000_000_000 + 60_000 * n, "like" if likes else "view"))
    return items, events


def write_dataset(folder: Path, items: list[Item], events: list[Interaction]) -> Path:
    """As a dataset folder, of a time when there were such."""
    folder.mkdir(parents=True)
    events = [replace(event, event_time=event.event_time + 1_600_000_000_000) for event in events]
    rows = [{"item_id": i.item_id, "title": i.title, "text": i.text, "categories": "|".join(i.categories)} for i in items]
    pl.DataFrame(rows).write_csv(folder / "items.csv")
    fields = ("event_id", "user_id", "item_id", "event_time", "action", "value")
    pl.DataFrame([{name: getattr(e, name) for name in fields} for e in events]).write_csv(folder / "events.csv")
    (folder / "dataset.toml").write_text(f'name = "glass"\npositive = "{POSITIVE}"\n')
    return folder


QUICK = {
    "towers": {"dimensions": 16, "blocks": 1, "epochs": 6, "batch": 8, "rate": 0.01},
    "ranker": {"width": 16, "experts": 2, "epochs": 3},
    "queries": 300,
    "neighbours": 16,
}
"A settings file that is enough for `contrary_corpus`."
SMALL = LearnSettings(
    towers=TowerSettings(dimensions=16, blocks=1, epochs=30, batch=8, rate=1e-2, other=0.0),
    ranker=RankerSettings(width=16, experts=2, epochs=4, batch=16),
    neighbours=16,
    queries=120,
)


KINDS = ("both", "text", "image", "neither")


def pictured(folder: Path, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """The corpus with an image for two of three items; and items that nobody meets, one of each of KINDS of content."""
    folder.mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(COLOURS):
        for shade in range(20):
            colour = [20 + 3 * shade] * 3
            colour[n] = 250 - 4 * shade
            Image.new("RGB", (40 + shade, 40), (colour[0], colour[1], colour[2])).save(folder / f"{name}{shade}.png")
    items, _ = corpus(seed)
    seen = [replace(i, image=str(folder / f"{COLOURS[n % 3]}{n % 20}.png") if n % 3 else None) for n, i in enumerate(items)]
    unmet = [
        Item("unmet-both", "a red thing", "of glass", ("red",), str(folder / "red3.png")),
        Item("unmet-text", "a green thing", "of glass", ("green",)),
        Item("unmet-image", image=str(folder / "blue4.png")),
        Item("unmet-neither"),
    ]
    return seen, unmet


def small_release(cache: Path, seed: int = 0) -> Learned:
    torch.set_num_threads(1)
    seen, unmet = pictured(cache / "images", seed)
    return learn(Corpus("glass", [*seen, *unmet], corpus(seed)[1], POSITIVE), cache, SMALL)
