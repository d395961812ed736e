"""Impressions: records of shown slates, with the features by which they were ranked."""

from __future__ import annotations

from functools import partial

from agents.requests.outbox import Queued
from models.features.compute import SPEC
from schemas.codec import encoding, header
from schemas.direct import impression_body
from schemas.records import Slate

__all__ = ["impression"]


def impression(slate: Slate, topic: str) -> Queued:
    """Build the record of a slate for `topic` (a full name), keyed by its user. It is encoded when it is sent."""
    return Queued(topic, slate.user_id.encode(), partial(_encoded, slate), (), "impression")


def _encoded(slate: Slate) -> bytes:
    with encoding("impression"):
        return header("impression") + impression_body(slate, "none" if slate.release == "none" else SPEC)
