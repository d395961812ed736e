"""Users, events and candidates of a dataset, with which requests and events are made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from schemas.records import Interaction

USERS, EVENTS, TO_RERANK, CANDIDATES = 5_000, 20_000, 200, 300


@dataclass(frozen=True)
class Sample:
    """What the processes that make load need of a dataset."""

    users: list[str]
    events: list[tuple[str, str, str, float | None]]
    "User, item, action and value. Repeating them leaves the seen-sets as they are."
    candidates: list[tuple[str, list[str]]]
    "A user, and `CANDIDATES` items that the user had no event with."
    positive: tuple[str, float | None]
    "Action and value of an event that counts as liked."

    def save(self, file: Path) -> None:
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, file: Path) -> Sample:
        return cls(**json.loads(file.read_text(encoding="utf-8")))


class Sampler:
    """Draws a sample from events that pass through it."""

    def __init__(self, items: list[str], seed: int = 7) -> None:
        self.items, self.rng = items, np.random.default_rng(seed)
        self.seen: dict[str, set[str]] = {}
        self.events: list[tuple[str, str, str, float | None]] = []
        self.count = 0

    def through(self, events: Iterable[Interaction]) -> Iterator[Interaction]:
        for event in events:
            self.count += 1
            if event.user_id in self.seen or len(self.seen) < USERS:
                self.seen.setdefault(event.user_id, set()).add(event.item_id)
            kept = len(self.events) if len(self.events) < EVENTS else int(self.rng.integers(self.count))
            if kept < EVENTS:  # a uniform sample (Vitter 1985, algorithm R)
                self.events[kept : kept + 1] = [(event.user_id, event.item_id, event.action, event.value)]
            yield event

    def sample(self) -> Sample:
        users = list(self.seen)
        self.rng.shuffle(users)
        candidates = []
        for user in users[:TO_RERANK]:
            drawn = self.rng.choice(self.items, min(len(self.items), CANDIDATES + len(self.seen[user])), replace=False)
            candidates.append((user, [item for item in drawn.tolist() if item not in self.seen[user]][:CANDIDATES]))
        best = max(self.events, key=lambda event: event[3] or 0.0)
        return Sample(users, self.events, candidates, (best[2], best[3]))
