"""Progress of trainings: what is written can be read, whatever a training reports, and nothing else is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import encode
from schemas.errors import BadEvent
from schemas.trainings import (
    MAX_NAME,
    MAX_PARTS,
    MAX_REASON,
    MAX_REASONS,
    MAX_SECONDS,
    STATES,
    TrainingProgress,
    decode_progress,
    encode_progress,
)

MOST_BYTES = 64_000
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=MAX_NAME)
SECONDS = st.floats(0, MAX_SECONDS)
SHARES = st.floats(0, 1)
SOUND = st.builds(
    TrainingProgress,
    training=NAMES.filter(bool),
    kind=NAMES,
    host=NAMES,
    started_at=st.integers(0, 2**53 - 1),
    elapsed_s=SECONDS,
    state=st.sampled_from(STATES),
    part=NAMES,
    part_share=SHARES,
    share=st.none() | SHARES,
    left_s=st.none() | SECONDS,
    parts=st.lists(st.tuples(NAMES, SECONDS), max_size=8).map(tuple),
    release=st.none() | NAMES,
    reasons=st.lists(NAMES, max_size=8).map(tuple),
)
ANY = st.floats()
LONG = st.integers(0, 3 * MAX_REASON).map(lambda n: "ü" * n)


@given(SOUND)
def test_what_is_written_is_read(found: TrainingProgress) -> None:
    assert decode_progress(encode_progress(found)) == found


@given(SOUND, ANY, ANY, ANY, st.integers(-(2**62), 2**62), LONG, st.integers(0, 3 * MAX_PARTS))
def test_whatever_a_training_reports_is_sound_and_small_once_written(
    found: TrainingProgress, one: float, other: float, third: float, at: int, text: str, count: int
) -> None:
    wild = replace(
        found,
        host=text,
        part=text,
        release=text,
        elapsed_s=one,
        left_s=other,
        share=third,
        part_share=one,
        started_at=at,
        parts=((text, other),) * count,
        reasons=(text,) * count,
    )
    written = encode_progress(wild)
    assert len(written) < MOST_BYTES
    read = decode_progress(written)
    assert (len(read.parts), len(read.reasons)) == (min(count, MAX_PARTS), min(count, MAX_REASONS))
    assert text.startswith(read.part)
    assert len(read.part) == min(len(text), MAX_NAME)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_progress_raise_nothing_but_bad_event(value: bytes) -> None:
    with pytest.raises(BadEvent):
        decode_progress(value)
    with pytest.raises(BadEvent):
        decode_progress(encode_progress(TrainingProgress("t"))[:10] + value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("training", ""),
        ("training", "x" * (MAX_NAME + 1)),
        ("state", "won"),
        ("started_at", -1),
        ("elapsed_s", math.nan),
        ("left_s", -1.0),
        ("share", 1.5),
        ("share", math.nan),
        ("part_share", -0.1),
        ("reasons", ["x" * (MAX_REASON + 1)]),
        ("reasons", ["x"] * (MAX_REASONS + 1)),
        ("parts", [{"name": "x", "expected_s": 1.0}] * (MAX_PARTS + 1)),
        ("parts", [{"name": "x", "expected_s": math.inf}]),
    ],
)
def test_what_riffle_would_not_write_is_refused(name: str, value: object) -> None:
    sound = TrainingProgress("t", part="towers", share=0.5, left_s=3.0)
    datum = {
        **{field: getattr(sound, field) for field in TrainingProgress.__slots__},
        "parts": [],
        "reasons": [],
        name: value,
    }
    with pytest.raises(BadEvent, match="progress"):
        decode_progress(encode("training_progress", datum))
