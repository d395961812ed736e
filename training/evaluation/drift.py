"""Drift: what moved in the events since the champion's training, by feature and by user.

Features here are columns of events and what the events before them make of users and items. The ranker's features derive from
these. What is newer than the champion's training data is compared with the newest part of that data, by the population
stability index. Users are compared with their own earlier events, by category. What only grows with time, as the number of all
events of a user, is no feature here: it would always have moved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.rules import PositiveRule
from models.units import DAY_MS
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.data.table import with_liked
from training.evaluation.stability import chance_bound, edges_of, stability_index

__all__ = ["Drift", "Moved", "drift_of"]

REFERENCE = 20_000
"Minimum number of the champion's newest events that newer ones are compared with, if it has as many."
BINS = 10
NAMED = 12
"Maximum number of texts (actions, categories) that are told apart; the others are one bin."
MOVED = 0.1
"Index from which a feature has moved, if chance does not explain it."
USER_MOVED = 0.25
"Index from which a user has moved, if chance does not explain it: few events of a user are a small sample."
LEAST = 5
"Minimum number of a user's events before and since, for a comparison."
LISTED = 10
"Maximum number of users that are named."
NUMBERS = ("value", "price", "seconds_since_event", "user_events_7d", "item_events_7d", "item_age_days")
TEXTS = ("action", "liked", "category")
WINDOW_S = 7 * DAY_MS // 1_000
OLD_DAYS = 30.0
"Age from which items count as equally old."
OTHER, NONE = "other", "none"


@dataclass(frozen=True, slots=True)
class Moved:
    """The movement of one feature or user."""

    name: str
    index: float
    "Population stability index."
    chance: float
    "Index that equal distributions exceed once in 1,000 samples."
    moved: bool
    bins: tuple[str, ...] = ()
    "Bins that grew and that shrank most, in words."

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON."""
        found = {"psi": round(self.index, 4), "chance": round(self.chance, 4), "moved": self.moved}
        return {**found, **({"bins": list(self.bins)} if self.bins else {})}


@dataclass(frozen=True, slots=True)
class Drift:
    """What moved since the champion's training."""

    champion: str
    before: int
    "Number of the champion's newest events that are compared."
    after: int
    "Number of events that are newer."
    features: tuple[Moved, ...] = ()
    "All features, the one that moved most first."
    compared: int = 0
    "Number of users with enough events before and since."
    new_users: int = 0
    "Number of users whose first event is newer than the champion's training data."
    moved_users: int = 0
    most: tuple[Moved, ...] = field(default=(), repr=False)
    "Users that moved most, at most LISTED."

    def to_json(self, *, named: bool = True) -> dict[str, Any]:
        """Convert to JSON. Not `named`: without ids of users, for files that outlive an erasure."""
        users: dict[str, Any] = {"compared": self.compared, "moved": self.moved_users, "new": self.new_users}
        if named:
            users["most"] = {one.name: one.to_json() for one in self.most}
        return {
            "since": self.champion,
            "before": self.before,
            "after": self.after,
            "features": {one.name: one.to_json() for one in self.features},
            "users": users,
        }

    def lines(self) -> list[str]:
        """Return the report as lines for a person, without ids of users."""
        compared = f"{self.after:,} newer events, {self.before:,} before"
        if not self.before or not self.after:
            return [f"moved since {self.champion}: nothing to compare ({compared})"]
        moved = [f"{one.name} ({one.index:.2f}; {', '.join(one.bins)})" for one in self.features if one.moved]
        users = f"{self.moved_users:,} of {self.compared:,} users have moved, {self.new_users:,} are new"
        return [f"moved since {self.champion}: {'; '.join(moved) or 'no feature'} ({compared}); {users}"]


def drift_of(corpus: Corpus, champion: str, until_ms: int) -> Drift:
    """Compare the events of `corpus` later than `until_ms`, to which `champion` was trained, with those before.

    Events on items outside the catalogue count, too. Equal data gives an equal report.
    """
    events = corpus.events if isinstance(corpus.events, EventFrame) else EventFrame.of(corpus.events)
    frame = _columns(events.frame, corpus)
    cut = int((frame["event_time"] <= until_ms).sum())
    after = frame[cut:]
    before = frame[max(0, cut - max(REFERENCE, len(after))) : cut]
    if not len(before) or not len(after):
        return Drift(champion, len(before), len(after))
    found = [_number(name, before, after) for name in NUMBERS] + [_text(name, before, after) for name in TEXTS]
    features = tuple(sorted((one for one in found if one is not None), key=lambda one: (not one.moved, -one.index, one.name)))
    compared, users = _users(frame[:cut], after)
    first = frame.group_by("user_id").agg(pl.col("event_time").min())
    fresh = int((first["event_time"] > until_ms).sum())
    return Drift(champion, len(before), len(after), features, compared, fresh, len(users), tuple(users[:LISTED]))


def _columns(frame: pl.DataFrame, corpus: Corpus) -> pl.DataFrame:
    """Events in event-time order with the columns NUMBERS and TEXTS; numbers are NaN and texts NONE where unknown."""
    items = pl.DataFrame(
        {
            "item_id": [item.item_id for item in corpus.items],
            "category": [item.categories[0] if item.categories else NONE for item in corpus.items],
            "price": [item.price for item in corpus.items],
            "_published": [item.published_at for item in corpus.items],
        },
        schema={"item_id": pl.String, "category": pl.String, "price": pl.Float64, "_published": pl.Int64},
    )
    events = frame.select(pl.col("user_id", "item_id", "action").cast(pl.String), "event_time", "value").sort(
        "event_time", maintain_order=True
    )
    events = with_liked(events, PositiveRule(corpus.positive))
    events = events.join(items, on="item_id", how="left", maintain_order="left")
    time, of_item = pl.col("event_time"), pl.col("event_time").first().over("item_id")
    known = pl.min_horizontal(pl.col("_published"), of_item)
    return events.with_columns(
        pl.col("value", "price").fill_null(np.nan),
        ((time - time.shift().over("user_id")) / 1_000).fill_null(np.nan).alias("seconds_since_event"),
        _recent(events, "user_id").alias("user_events_7d"),
        _recent(events, "item_id").alias("item_events_7d"),
        ((time - known) / DAY_MS).clip(upper_bound=OLD_DAYS).alias("item_age_days"),
        pl.col("_liked").cast(pl.String).alias("liked"),
        pl.col("category").fill_null("unknown item"),
    )


def _recent(events: pl.DataFrame, name: str) -> pl.Series:
    """Number of events of the same user or item in the WINDOW_S up to each event, itself included."""
    code = events[name].rank("dense").cast(pl.Int64).to_numpy()
    seconds = events["event_time"].to_numpy() // 1_000
    since = seconds - seconds.min(initial=0)
    base = code * (int(since.max(initial=0)) + 1)
    order = np.argsort(base, kind="stable")
    place = (base + since)[order]
    first = np.searchsorted(place, np.maximum(place - WINDOW_S, base[order]))
    found = np.empty(len(order), np.float64)
    found[order] = np.arange(1, len(order) + 1) - first
    return pl.Series(found)


def _number(name: str, before: pl.DataFrame, after: pl.DataFrame) -> Moved | None:
    """Compare numbers in bins of equal size before; those without a value are a bin of their own."""
    values = [part[name].to_numpy().astype(np.float64) for part in (before, after)]
    edges = edges_of(values[0], BINS)
    if not len(edges) and not np.isfinite(values[1]).any():
        return None  # nobody has it
    # a value equal to a bound is in the bin above it
    counts = [
        np.bincount(
            np.where(np.isfinite(part), np.searchsorted(edges, part, side="right"), len(edges) + 1), minlength=len(edges) + 2
        )
        for part in values
    ]
    bounds = ["", *(f"{edge:.4g}" for edge in edges), ""]
    names = [_between(low, high) for low, high in pairwise(bounds)]
    return _compared(name, counts[0], counts[1], [*names, NONE])


def _between(low: str, high: str) -> str:
    if not low and not high:
        return "any"
    return f"below {high}" if not low else f"from {low}" if not high else f"{low} to {high}"


def _text(name: str, before: pl.DataFrame, after: pl.DataFrame) -> Moved | None:
    """Compare texts by the most frequent of both parts."""
    counts = pl.concat([before[name], after[name]]).value_counts(name="n").sort(["n", name], descending=[True, False])
    names = counts[name].head(NAMED).to_list()
    if len(counts) == 1 and names == [NONE]:
        return None
    codes = [part[name].replace_strict(names, range(len(names)), default=len(names)).to_numpy() for part in (before, after)]
    both = [np.bincount(part, minlength=len(names) + 1) for part in codes]
    return _compared(name, both[0], both[1], [*names, OTHER])


def _compared(name: str, before: NDArray[np.int64], after: NDArray[np.int64], bins: list[str]) -> Moved:
    p, q = before.astype(np.float64), after.astype(np.float64)
    index, chance = float(stability_index(p, q)), float(chance_bound(p, q))
    moved = index > max(MOVED, chance)
    shares = p / max(p.sum(), 1.0), q / max(q.sum(), 1.0)
    change = shares[1] - shares[0]
    said = (f"{bins[n]}: {shares[0][n]:.0%} → {shares[1][n]:.0%}" for n in (int(change.argmax()), int(change.argmin())))
    return Moved(name, index, chance, moved, tuple(said) if moved else ())


def _users(before: pl.DataFrame, after: pl.DataFrame) -> tuple[int, list[Moved]]:
    """Number of users that could be compared, and those that moved, most moved first, by category of their events."""
    since = after.group_by("user_id").len().filter(pl.col("len") >= LEAST)
    mine = before.join(since.select("user_id"), on="user_id", how="semi")
    both = (
        mine.group_by("user_id").len().filter(pl.col("len") >= LEAST).select("user_id").sort("user_id").with_row_index("_user")
    )
    if not len(both):
        return 0, []
    parts = [part.join(both, on="user_id").select("_user", "category") for part in (mine, after)]
    counts = (
        pl.concat([part["category"] for part in parts]).value_counts(name="n").sort(["n", "category"], descending=[True, False])
    )
    names = counts["category"].head(NAMED).to_list()
    width = len(names) + 1
    tables = []
    for part in parts:
        code = part["category"].replace_strict(names, range(len(names)), default=len(names), return_dtype=pl.Int64)
        place = part["_user"].cast(pl.Int64).to_numpy() * width + code.to_numpy()
        tables.append(np.bincount(place, minlength=width * len(both)).reshape(len(both), width).astype(np.float64))
    index, chance = stability_index(*tables), chance_bound(*tables)
    moved = np.flatnonzero(index > np.maximum(USER_MOVED, chance))
    order = moved[np.argsort(-index[moved], kind="stable")]
    ids, bins = both["user_id"].to_list(), [*names, OTHER]
    most = [_compared(ids[n], tables[0][n].astype(np.int64), tables[1][n].astype(np.int64), bins) for n in order[:LISTED]]
    return len(both), most + [Moved("", float(index[n]), float(chance[n]), moved=True) for n in order[LISTED:]]
