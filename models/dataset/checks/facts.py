"""What is known of a dataset folder after one pass over its rows, for the checks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from models.dataset.bad_rows import BadRow
from models.dataset.folder import Dataset
from models.dataset.needs import ToJudge, to_judge
from models.rules import SHOWN, PositiveRule

__all__ = ["Facts", "gathered"]

LARGEST_IMAGE = 20 << 20
"Size in bytes from which an image file is not encoded."
LOOKED_AT = 20_000
"Maximum number of image files whose size is looked at."


@dataclass(slots=True)
class Facts:
    """Counts of valid rows unless stated otherwise."""

    items: int = 0
    described: int = 0
    "Items with a title, a text or categories."
    pictured: int = 0
    "Items with an image that was found, or with a URL."
    large_images: list[str] = field(default_factory=list)
    "Names of images beyond `LARGEST_IMAGE`."
    events: int = 0
    "Events that are not impressions."
    impressions: int = 0
    unknown: int = 0
    "Events on items that the catalogue lacks."
    unknown_example: str = ""
    liked: int = 0
    actions: Counter[str] = field(default_factory=Counter)
    "Events by action, with impressions."
    per_user: Counter[str] = field(default_factory=Counter)
    "Events by user."
    first_ms: int = 0
    last_ms: int = 0
    has_events: bool = True
    "Whether events were read."
    judge: ToJudge = field(default_factory=lambda: ToJudge(0, 0, 0))
    bad: list[BadRow] = field(default_factory=list)
    bad_count: int = 0
    cut: frozenset[str] = frozenset()
    "Files of which only the first rows were read."

    @property
    def all_events(self) -> int:
        """Events with impressions."""
        return self.events + self.impressions

    @property
    def known(self) -> int:
        """Events on items of the catalogue."""
        return self.events - self.unknown


def gathered(dataset: Dataset, now_ms: int, *, events: bool = True) -> Facts:
    """Read the folder's items and, unless excluded, its events.

    Raises:
        BadDataset: a file cannot be read.
    """
    facts, ids = Facts(has_events=events), set[str]()
    looked = 0
    for item in dataset.items():
        ids.add(item.item_id)
        facts.items += 1
        facts.described += bool(item.title or item.text or item.categories)
        facts.pictured += item.image is not None
        if item.image is not None and "://" not in item.image and looked < LOOKED_AT:
            looked += 1
            if Path(item.image).stat().st_size > LARGEST_IMAGE:
                facts.large_images.append(Path(item.image).name)
    if events:
        _events(dataset, facts, ids, now_ms)
    facts.bad, facts.bad_count, facts.cut = list(dataset.bad), dataset.bad_count, frozenset(dataset.cut)
    return facts


def _events(dataset: Dataset, facts: Facts, ids: set[str], now_ms: int) -> None:
    liked = PositiveRule(dataset.positive)
    found: list[tuple[str, str, int, str, float | None]] = []
    for event in dataset.events(now_ms):
        facts.actions[event.action] += 1
        if event.action == SHOWN:
            facts.impressions += 1
            continue
        facts.events += 1
        facts.liked += liked(event.action, event.value)
        facts.per_user[event.user_id] += 1
        if event.item_id not in ids:
            facts.unknown += 1
            facts.unknown_example = facts.unknown_example or event.item_id
        found.append((event.user_id, event.item_id, event.event_time, event.action, event.value))
    if found:
        facts.first_ms, facts.last_ms = found[0][2], found[-1][2]
        facts.judge = to_judge(found, liked)
