"""Summaries of user records, for readers outside the stream."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from models.items.store import ItemStore
from models.state.rows import AFFINITY_HALF_LIFE_MS, EVENT, UserRecord, hash64

__all__ = ["record_of", "summary"]

RECENT = 20
"Number of newest events in a summary."


def summary(record: UserRecord, items: ItemStore) -> dict[str, Any]:
    """Summarise a user's record as JSON values."""
    newest = record.last_ms
    affinity = {
        name: round(weight * 2.0 ** (-(newest - at) / AFFINITY_HALF_LIFE_MS), 4)
        for name, (weight, at) in record.affinities.items()
    }
    newest_events = record.history[-RECENT:][::-1]
    columns = (newest_events[name].tolist() for name in ("item", "action", "time", "value"))
    recent = [
        {
            "item_id": items.id_of(item),
            "action": record.actions[action],
            "event_time": time_ms,
            "value": None if math.isnan(value) else value,
        }
        for item, action, time_ms, value in zip(*columns, strict=True)
    ]
    session_id, started, events = record.session
    return {
        "events": sum(record.counts.values()),
        "counts": record.counts,
        "first_event_time": record.first_ms,
        "last_event_time": newest,
        "affinities": dict(sorted(affinity.items(), key=lambda pair: -pair[1])[:20]),
        "recent": recent,
        "seen": sum(record.seen.counts),
        "session": {"session_id": session_id or None, "started_at": started, "events": events},
    }


def record_of(summary: Mapping[str, Any]) -> UserRecord:
    """Build a record from a summary: the newest `RECENT` events, and the items of these as the seen-set.

    Raises:
        KeyError, TypeError, ValueError: it is no summary of this version.
    """
    counts = {str(action): int(n) for action, n in summary["counts"].items()}
    actions = {action: n for n, action in enumerate(counts)}
    newest = int(summary["last_event_time"])
    session = summary["session"]
    record = UserRecord(
        counts=counts,
        affinities={str(name): (float(weight), newest) for name, weight in summary["affinities"].items()},
        first_ms=int(summary["first_event_time"]),
        session=(session["session_id"] or "", int(session["started_at"]), int(session["events"])),
    )
    known = [event for event in summary["recent"][::-1] if event["item_id"] is not None]
    record.history = np.zeros(len(known), EVENT)
    for row, event in zip(record.history, known, strict=True):
        value = math.nan if event["value"] is None else float(event["value"])
        row["time"], row["item"] = int(event["event_time"]), hash64(event["item_id"])
        row["value"], row["action"] = value, actions[event["action"]]
        record.seen.add(event["item_id"])
    return record
