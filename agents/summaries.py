"""Summaries of user records, for readers outside the stream."""

from __future__ import annotations

import math
from typing import Any

from models.items.store import ItemStore
from models.state.rows import AFFINITY_HALF_LIFE_MS, UserRecord

__all__ = ["summary"]


def summary(record: UserRecord, items: ItemStore) -> dict[str, Any]:
    """Summarise a user's record as JSON values."""
    newest = record.last_ms
    affinity = {
        name: round(weight * 2.0 ** (-(newest - at) / AFFINITY_HALF_LIFE_MS), 4)
        for name, (weight, at) in record.affinities.items()
    }
    recent = []
    for event in record.history[-20:][::-1]:
        value = float(event["value"])
        recent.append(
            {
                "item_id": items.id_of(int(event["item"])),
                "action": record.actions[int(event["action"])],
                "event_time": int(event["time"]),
                "value": None if math.isnan(value) else value,
            }
        )
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
