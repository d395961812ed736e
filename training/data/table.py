"""Events as arrays with labels: the input of all models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.release.sequences import ACTION_SLOTS, Vocabulary
from models.rules import PositiveRule
from models.units import DAY_MS
from schemas.errors import ConfigError
from schemas.records import Interaction, Item
from training.data.events import EventFrame

__all__ = [
    "ATTRIBUTION_MS",
    "EventTable",
    "Heads",
    "heads_of",
    "of_known_items",
    "published",
    "vocabulary_of",
    "windows_of",
    "with_liked",
]

ATTRIBUTION_MS = DAY_MS
"Default time after a first interaction in which an action counts for it, ms."
MAX_HEADS = 4
"Maximum number of heads, unless heads are named."

Heads = tuple[tuple[str, float], ...]
"(action, weight in the score) of each predicted action."


def of_known_items(events: Sequence[Interaction], items: Sequence[Item]) -> Sequence[Interaction]:
    """Select the events whose item is in the catalogue."""
    if isinstance(events, EventFrame):
        return events.of_items([item.item_id for item in items])
    known = {item.item_id for item in items}
    return [event for event in events if event.item_id in known]


def published(items: Sequence[Item], events: Sequence[Interaction]) -> list[Item]:
    """Items published by the time of the last event. Later items are excluded, so that they are served as new items."""
    until = events[-1].event_time if events else 0
    return [item for item in items if item.published_at is None or item.published_at <= until]


def _actions(events: Sequence[Interaction]) -> list[str]:
    if isinstance(events, EventFrame):
        return events.frame["action"].cast(pl.String).to_list()
    return [event.action for event in events]


def _values(events: Sequence[Interaction]) -> NDArray[np.float64]:
    """Values of the events, NaN where there is none."""
    if isinstance(events, EventFrame):
        return events.frame["value"].fill_null(np.nan).to_numpy()
    return np.asarray([np.nan if event.value is None else event.value for event in events], np.float64)


def with_liked(events: pl.DataFrame, rule: PositiveRule) -> pl.DataFrame:
    """Add column `_liked` to events with columns `action` and `value`. `rule` is evaluated once per distinct pair."""
    kinds = events.select("action", "value").unique()
    liked = pl.Series("_liked", [rule(action, value) for action, value in kinds.iter_rows()], pl.Boolean)
    return events.join(kinds.with_columns(liked), on=["action", "value"], how="left", nulls_equal=True, maintain_order="left")


def vocabulary_of(events: Sequence[Interaction], positive: str) -> Vocabulary:
    """Encoding of these events: frequent actions, mean and deviation of the values, positive rule."""
    values = _values(events)
    values = values[~np.isnan(values)]
    counts = Counter(_actions(events))
    actions = sorted(counts, key=lambda name: (-counts[name], name))[: ACTION_SLOTS - 1]
    mean, deviation = (float(values.mean()), float(values.std())) if len(values) else (0.0, 1.0)
    return Vocabulary(actions, mean, deviation or 1.0, positive)


def _demand_known(setting: str, named: Mapping[str, float], vocabulary: Vocabulary) -> None:
    if unknown := sorted(set(named) - {"positive", *vocabulary.actions}):
        there = ", ".join(vocabulary.actions)
        message = f"{setting}.{unknown[0]}: no frequent action has this name; those are {there}"
        raise ConfigError("unknown_action", message, f"{setting}.{unknown[0]}")


def windows_of(windows_s: Mapping[str, float], vocabulary: Vocabulary) -> dict[str, int]:
    """Convert windows to ms, by action or `positive`.

    Raises:
        ConfigError: an action is named that is not among the frequent ones.
    """
    _demand_known("windows_s", windows_s, vocabulary)
    return {name: round(seconds * 1000) for name, seconds in windows_s.items()}


def heads_of(
    events: Sequence[Interaction], vocabulary: Vocabulary, positive: str, weights: Mapping[str, float] = MappingProxyType({})
) -> Heads:
    """Choose the heads: `positive` with weight 1, and each frequent action that differs from it, with 0.1 if it can be liked.

    An action that is never liked (a skip, a dislike; a view where only a purchase counts) is learned and reported, but has no
    weight in the score. Given `weights` by action, the heads are `positive` and the named actions with these weights. A
    negative weight lowers the score.

    Raises:
        ConfigError: an action is named that is not among the frequent ones.
    """
    if weights:
        _demand_known("heads", weights, vocabulary)
        return tuple({"positive": 1.0, **weights}.items())
    rule = PositiveRule(positive)
    heads: list[tuple[str, float]] = [("positive", 1.0)]
    pairs = {(a, None if v != v else v) for a, v in zip(_actions(events), _values(events).tolist(), strict=True)}  # noqa: PLR0124
    liked = {pair for pair in pairs if rule(*pair)}
    for action in vocabulary.actions[: MAX_HEADS - 1]:
        mine = {pair for pair in pairs if pair[0] == action}
        if mine != liked:
            heads.append((action, 0.1 if mine & liked else 0.0))
    return tuple(heads)


@dataclass(slots=True)
class EventTable:
    """n events in event-time order."""

    user: NDArray[np.int64]
    item: NDArray[np.int64]
    "Index of the item in the given catalogue."
    time_ms: NDArray[np.int64]
    slot: NDArray[np.int64]
    value: NDArray[np.float32]
    "Standardised value."
    has_value: NDArray[np.bool_]
    liked: NDArray[np.bool_]
    first: NDArray[np.bool_]
    "Whether this is the user's first interaction with the item; only then can a slate have shown it."
    labels: NDArray[np.float32]
    "Whether each head's action followed within its attribution window, `(n, heads)`. Only meaningful where `first`."

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of(
        cls,
        events: Sequence[Interaction],
        items: Sequence[Item],
        vocabulary: Vocabulary,
        heads: Heads,
        windows_ms: Mapping[str, int] = MappingProxyType({}),
    ) -> EventTable:
        """Make the table of events on catalogue items; other events are dropped. `windows_ms`: other windows, by head."""
        events = of_known_items(events, items)
        if isinstance(events, EventFrame):
            user, item = events.codes("user_id"), events.codes("item_id", [item.item_id for item in items])
            time = events.frame["event_time"].to_numpy()
        else:
            number, users = {item.item_id: n for n, item in enumerate(items)}, dict[str, int]()
            user = np.asarray([users.setdefault(event.user_id, len(users)) for event in events], np.int64)
            item = np.asarray([number[event.item_id] for event in events], np.int64)
            time = np.asarray([event.event_time for event in events], np.int64)
        raw, actions = _values(events).astype(np.float32), _actions(events)
        liked = np.asarray([vocabulary.liked(a, v) for a, v in zip(actions, raw.tolist(), strict=True)], np.bool_)
        slot = vocabulary.slots(actions)
        hits = {
            f"head{n}": liked if name == "positive" else slot == vocabulary.slots([name])[0]
            for n, (name, _) in enumerate(heads)
        }
        frame = pl.DataFrame({"user": user, "item": item, "time": time, **hits}).with_row_index("row")
        pair = ["user", "item"]
        frame = frame.with_columns(
            pl.col("row").min().over(pair).alias("first_row"),
            pl.col("time").first().over(pair, order_by="row").alias("first_time"),
        )
        windows = {f"head{n}": windows_ms.get(name, ATTRIBUTION_MS) for n, (name, _) in enumerate(heads)}
        age = pl.col("time") - pl.col("first_time")
        came = [(pl.col(name) & (age <= windows[name])).any().over(pair).alias(name) for name in hits]
        frame = frame.with_columns(*came).sort("row")
        return cls(
            user,
            item,
            time,
            slot,
            vocabulary.standard(raw),
            ~np.isnan(raw),
            liked,
            (frame["row"] == frame["first_row"]).to_numpy().astype(np.bool_),
            frame.select(list(hits)).to_numpy().astype(np.float32).reshape(len(events), len(heads)),
        )

    def until(self, n: int) -> EventTable:
        """Take the first n events. Their labels may use later events; recompute with `of` where that matters."""
        return self.take(slice(n))

    def take(self, rows: slice | NDArray[np.intp] | NDArray[np.bool_]) -> EventTable:
        """Select some of the events. `first` and labels keep their values from the full table."""
        return EventTable(*(getattr(self, name)[rows] for name in self.__slots__))
