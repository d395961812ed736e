"""Frozen record types that schemas decode to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["After", "AsOf", "Interaction", "Item", "Request", "Slate", "SlateItem"]


@dataclass(frozen=True, slots=True)
class Interaction:
    """An event: a user's action on an item. `event_time` is epoch milliseconds."""

    event_id: str
    user_id: str
    item_id: str
    event_time: int
    action: str = "view"
    value: float | None = None
    session_id: str | None = None
    request_id: str | None = None
    position: int | None = None


@dataclass(frozen=True, slots=True)
class Item:
    """A catalogue entry. `published_at` is epoch milliseconds; `image` a path or URL."""

    item_id: str
    title: str = ""
    text: str = ""
    categories: tuple[str, ...] = ()
    image: str | None = None
    price: float | None = None
    available: bool = True
    published_at: int | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class After:
    """A read-your-writes token: the answer must reflect the event at this offset."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Request:
    """A recommendation request. With `candidates` exactly those are ranked; without, candidates are retrieved."""

    request_id: str
    user_id: str
    k: int = 10
    context: Mapping[str, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    explain: bool = False
    after: After | None = None
    candidates: tuple[str, ...] | None = None
    repeats: bool = False
    "Whether the slate may hold items that the user has interacted with."


@dataclass(frozen=True, slots=True)
class SlateItem:
    """An item of a slate, with the sources that retrieved it."""

    item_id: str
    score: float
    sources: tuple[str, ...]
    explanation: Mapping[str, object] | None = None
    features: Sequence[float] | NDArray[np.float32] = field(default=(), compare=False)
    "The ranker's input, a row of the pipeline's float32 matrix, for the impression. Not part of the answer; empty in clients."


@dataclass(frozen=True, slots=True)
class AsOf:
    """The newest event of the user's partition that an answer reflects. `event_time` is epoch milliseconds."""

    partition: int
    offset: int
    event_time: int


@dataclass(frozen=True, slots=True)
class UserQuery:
    """A query for ids of a partition's users: at most `limit` of those that follow `after` in the order of their bytes."""

    after: str = ""
    "Empty for the first page."
    limit: int = 500
    "1 to 500."


@dataclass(frozen=True, slots=True)
class UserPage:
    """The answer to a `UserQuery`."""

    partition: int
    partitions: int
    "Number of partitions that users are spread over."
    users: tuple[str, ...]
    next: str | None
    "`after` of the next page; None if no user follows."

    def to_json(self) -> dict[str, object]:
        """Return the page in the form of the contract."""
        return {"partition": self.partition, "partitions": self.partitions, "users": list(self.users), "next": self.next}


@dataclass(frozen=True, slots=True)
class Slate:
    """An answer. `degraded` lists missing parts: failed stages, or `stale`; `timings_ms` each stage's duration."""

    request_id: str
    user_id: str
    items: tuple[SlateItem, ...]
    release: str
    arm: str
    degraded: tuple[str, ...] = ()
    as_of: AsOf | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the slate in the form of the contract."""
        items: list[dict[str, object]] = []
        for item in self.items:
            entry: dict[str, object] = {"item_id": item.item_id, "score": item.score, "sources": list(item.sources)}
            if item.explanation is not None:
                entry["explanation"] = dict(item.explanation)
            items.append(entry)
        as_of = None
        if self.as_of is not None:
            as_of = {
                "partition": self.as_of.partition,
                "offset": self.as_of.offset,
                "event_time": self.as_of.event_time,
            }
        return {
            "request_id": self.request_id,
            "user_id": self.user_id,
            "items": items,
            "release": self.release,
            "arm": self.arm,
            "degraded": list(self.degraded),
            "as_of": as_of,
            "timings_ms": dict(self.timings_ms),
        }
