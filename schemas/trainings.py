"""Progress of a training, as it is reported on the topic of trainings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from schemas.codec import decode, encode
from schemas.errors import BadEvent

__all__ = [
    "ENDS",
    "KEPT",
    "MAX_NAME",
    "MAX_PARTS",
    "MAX_REASON",
    "MAX_REASONS",
    "MAX_SECONDS",
    "RUNNING",
    "SHOWN",
    "SILENT",
    "STATES",
    "TrainingProgress",
    "decode_progress",
    "encode_progress",
]

RUNNING = "running"
ENDS = ("accepted", "refused", "skipped", "failed", "interrupted")
"How a training ends: `accepted` and `refused` by the gate; `skipped`, because there was nothing to learn yet."
STATES = (RUNNING, *ENDS)
SILENT = "silent"
"Not reported: a worker shows it of a training that ran when it last reported, and was killed or cut off since."
SHOWN = (RUNNING, SILENT, *ENDS)
KEPT = 20
"Maximum number of trainings that a worker knows: those that reported last."
SCHEMA = "training_progress"
MAX_PARTS, MAX_REASONS = 64, 16
MAX_NAME, MAX_REASON = 120, 400
"Maximum numbers of characters. Longer texts are cut off."
MAX_SECONDS = 1e9
MAX_TIME_MS = (1 << 53) - 1


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """How far a training is, or how it ended."""

    training: str
    "Identifies the training."
    kind: str = "full"
    "`full` or `incremental`."
    host: str = ""
    "Name of the machine or pod."
    started_at: int = 0
    "Epoch ms, by the trainer's clock."
    elapsed_s: float = 0.0
    state: str = RUNNING
    "One of `STATES`."
    part: str = ""
    "Name of the part under way."
    part_share: float = 0.0
    "Share of the part that is done, 0 to 1."
    share: float | None = None
    "Share of the whole that is done, 0 to 1; None until it is known."
    left_s: float | None = None
    "Expected seconds until the end; None until they are known."
    parts: tuple[tuple[str, float], ...] = ()
    "The parts in their order, with the expected seconds of each."
    release: str | None = None
    "The release that was made."
    reasons: tuple[str, ...] = ()
    "Why the gate refused the release, or why there is none."


def encode_progress(found: TrainingProgress) -> bytes:
    """Encode a record. Texts and lists that are too long are cut off, and numbers are moved to the nearest that may be sent."""
    return encode(
        SCHEMA,
        {
            **asdict(found),
            "training": found.training[:MAX_NAME],
            "kind": found.kind[:MAX_NAME],
            "host": found.host[:MAX_NAME],
            "started_at": min(max(found.started_at, 0), MAX_TIME_MS),
            "elapsed_s": _within(found.elapsed_s, MAX_SECONDS),
            "part": found.part[:MAX_NAME],
            "part_share": _within(found.part_share, 1.0),
            "share": None if found.share is None else _within(found.share, 1.0),
            "left_s": None if found.left_s is None else _within(found.left_s, MAX_SECONDS),
            "parts": [
                {"name": name[:MAX_NAME], "expected_s": _within(seconds, MAX_SECONDS)}
                for name, seconds in found.parts[:MAX_PARTS]
            ],
            "release": None if found.release is None else found.release[:MAX_NAME],
            "reasons": [reason[:MAX_REASON] for reason in found.reasons[:MAX_REASONS]],
        },
    )


def _within(number: float, most: float) -> float:
    return min(max(number, 0.0), most) if math.isfinite(number) else 0.0


def decode_progress(value: bytes) -> TrainingProgress:
    """Decode a record.

    Raises:
        BadEvent: it cannot be decoded, or holds what `encode_progress` does not write.
    """
    datum: Mapping[str, Any] = decode(SCHEMA, value)[0]
    parts = tuple((part["name"], part["expected_s"]) for part in datum["parts"])
    reasons = tuple(datum["reasons"])
    names = (
        *(datum[name] for name in ("training", "kind", "host", "part")),
        datum["release"] or "",
        *(name for name, _ in parts),
    )
    seconds = (datum["elapsed_s"], datum["left_s"] or 0.0, *(expected for _, expected in parts))
    sound = (
        datum["training"]
        and datum["state"] in STATES
        and all(len(text) <= MAX_NAME for text in names)
        and all(len(reason) <= MAX_REASON for reason in reasons)
        and len(parts) <= MAX_PARTS
        and len(reasons) <= MAX_REASONS
        and 0 <= datum["started_at"] <= MAX_TIME_MS
        and all(0 <= number <= MAX_SECONDS for number in seconds)  # false for NaN
        and all(0 <= share <= 1 for share in (datum["part_share"], datum["share"] or 0.0))
    )
    if not sound:
        raise BadEvent("invalid_field", "progress of a training that Riffle would not have written")
    return TrainingProgress(**{**datum, "parts": parts, "reasons": reasons})
