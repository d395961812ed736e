"""Reference tables, computed from events alone, in plain Python, event by event. The compiled loops must agree with them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from models.items.store import ItemStore
from models.state.bloom import SeenSet
from models.state.kernels.user_rows import UNIT
from models.state.rows import EVENT, ItemStatRow, NeighbourRow, UserRecord, hash64
from models.tables.users import UserTable
from schemas.columns import EventColumns
from schemas.records import Interaction

DAY = 86_400_000
HISTORY = 200


def faded(weight: float, age: int, half_life: int) -> float:
    """What is left of a weight: 2^(-age / half life) by its Taylor series, so that every bit is defined."""
    x = -age / half_life
    if x < -1070:
        return 0.0
    whole = math.floor(x + 0.5)
    power = math.log(2) ** 13 / math.factorial(13)
    for n in range(12, -1, -1):
        power = power * (x - whole) + math.log(2) ** n / math.factorial(n)
    return weight * math.ldexp(power, whole)


def decayed(weight: float, at: int, time: int, half_life: int) -> tuple[float, int]:
    """An exponentially decayed counter after one more event."""
    if time >= at:
        return faded(weight, time - at, half_life) + 1.0, time
    return weight + faded(1.0, at - time, half_life), at


@dataclass
class Person:
    counts: dict[str, int] = field(default_factory=dict)
    affinities: dict[str, tuple[float, int]] = field(default_factory=dict)
    first_ms: int | None = None
    session: tuple[str, int, int] = ("", 0, 0)
    seen: SeenSet = field(default_factory=SeenSet)
    history: list[tuple[int, str, float, int]] = field(default_factory=list)
    arrived: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY))

    def record(self) -> UserRecord:
        rows = [(time, hash64(item), value, action) for time, item, value, action in self.history]
        return UserRecord(
            self.counts,
            self.affinities,
            self.first_ms or 0,
            self.session,
            self.seen,
            np.array(rows, EVENT),
            np.array(list(self.arrived), np.uint64),
        )


@dataclass
class Tables:
    """Tables of one partition."""

    people: dict[str, Person] = field(default_factory=dict)
    statistics: dict[str, ItemStatRow] = field(default_factory=dict)
    covisits: dict[str, dict[str, float]] = field(default_factory=dict)
    accepted: list[bool] = field(default_factory=list)

    @classmethod
    def after(cls, events: Sequence[Interaction], categories: Mapping[str, Sequence[str]]) -> Tables:
        made = cls()
        for event in events:
            made.apply(event, categories.get(event.item_id, ()))
        return made

    def apply(self, event: Interaction, categories: Sequence[str]) -> None:
        person = self.people.setdefault(event.user_id, Person())
        code = hash64(event.event_id)
        self.accepted.append(code not in person.arrived)
        if not self.accepted[-1]:
            return
        person.arrived.append(code)
        value = math.nan if event.value is None else event.value
        self._covisit(person, event.item_id)
        self._count(event, value)
        action = event.action if event.action in person.counts or len(person.counts) < 64 else "other"
        name, start, n = person.session
        fresh = not person.history or event.event_time - person.history[-1][0] > 30 * 60_000
        if fresh or (event.session_id is not None and event.session_id != name):
            person.session = (event.session_id or "", event.event_time, 1)
        else:
            person.session = (name, start, n + 1)
        person.first_ms = event.event_time if person.first_ms is None else min(person.first_ms, event.event_time)
        person.counts[action] = person.counts.get(action, 0) + 1
        place = sum(time <= event.event_time for time, *_ in person.history)
        person.history.insert(place, (event.event_time, event.item_id, value, list(person.counts).index(action)))
        person.history = person.history[-HISTORY:]
        person.seen.add(event.item_id)
        for name in categories:
            weight, at = person.affinities.get(name, (0.0, event.event_time))
            person.affinities[name] = decayed(weight, at, event.event_time, 30 * DAY)
        if len(person.affinities) > 64:
            newest = max(at for _, at in person.affinities.values())
            left = {name: faded(weight, newest - at, 30 * DAY) for name, (weight, at) in person.affinities.items()}
            order = sorted(person.affinities, key=lambda name: (-left[name], hash64(name)))
            person.affinities = {name: person.affinities[name] for name in order[:64]}

    def _covisit(self, person: Person, item_id: str) -> None:
        before: list[str] = []
        for _, other, _, _ in person.history[:-33:-1]:
            if other != item_id and other not in before:
                before.append(other)
        for rank, other in enumerate(before[:8]):
            weight = round(0.8**rank * 65_536) / 65_536
            forward, backward = self.covisits.setdefault(other, {}), self.covisits.setdefault(item_id, {})
            forward[item_id] = forward.get(item_id, 0.0) + weight
            backward[other] = backward.get(other, 0.0) + weight / 2

    def _count(self, event: Interaction, value: float) -> None:
        row = self.statistics.setdefault(event.item_id, ItemStatRow(first_ms=event.event_time))
        row.counts[event.action] = row.counts.get(event.action, 0) + 1
        if not math.isnan(value):
            row.value_sum += float(np.float32(value))
            row.value_count += 1
        row.popularity, row.updated_ms = decayed(row.popularity, row.updated_ms, event.event_time, 14 * DAY)
        row.first_ms = min(row.first_ms, event.event_time)

    def neighbours(self) -> dict[str, NeighbourRow]:
        """Rows of items that never had more neighbours than are kept."""
        rows = {}
        for item, others in self.covisits.items():
            units = {hash64(other): round(weight / UNIT) for other, weight in others.items()}
            rows[item] = NeighbourRow(units, sum(units.values()))
        return rows


def records_of(events: Sequence[Interaction], items: ItemStore) -> dict[str, UserRecord]:
    """What a worker makes of `events`: the record of each of their people."""
    table = UserTable(items, lambda keys: [None] * len(keys))
    table.apply(EventColumns.of(events, range(len(events))))
    people = sorted({event.user_id for event in events})
    return {user: record for user, record in zip(people, table.lookup(people), strict=True) if record is not None}
