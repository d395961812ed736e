"""Impressions: records of shown slates, with the features by which they were ranked."""

from __future__ import annotations

from functools import partial

import numpy as np

from agents.requests.outbox import Queued
from models.features.compute import SPEC
from schemas.codec import encode
from schemas.records import Slate

__all__ = ["impression"]


def impression(slate: Slate, topic: str) -> Queued:
    """Build the record of a slate for `topic` (a full name), keyed by its user. It is encoded when it is sent."""
    return Queued(topic, slate.user_id.encode(), partial(_encoded, slate), (), "impression")


def _encoded(slate: Slate) -> bytes:
    datum = {
        "request_id": slate.request_id,
        "user_id": slate.user_id,
        "event_time": slate.as_of.event_time if slate.as_of else 0,
        "release": slate.release,
        "arm": slate.arm,
        "feature_spec": "none" if slate.release == "none" else SPEC,
        "as_of": slate.to_json()["as_of"],
        "items": [
            {
                "item_id": item.item_id,
                "position": position,
                "score": item.score,
                "propensity": 1.0,
                "sources": list(item.sources),
                "features": np.asarray(item.features, np.float32).tolist(),
            }
            for position, item in enumerate(slate.items)
        ],
    }
    return encode("impression", datum)
