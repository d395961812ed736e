"""Fuzzer of the strict parsers: each text is either refused with a ValueError that contains it, or parsed unambiguously."""

from __future__ import annotations

import math
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from fuzzing import fuzz, must_find
from hypothesis import given
from hypothesis import strategies as st

from schemas.parsing import MAX_TIME_MS, epoch_ms, finite_number, flag, whole_number

ODD = st.sampled_from(
    [
        "",
        " 5",
        "5 ",
        "+5",
        "5_0",
        "٣",
        "１",
        "NaN",
        "nan",
        "inf",
        "-Infinity",
        "1e999",
        "0x1f",
        "1,5",
        "1.5.2",
        "--1",
        "5\n",
        "\x00",
        "²",
    ]
)
TEXTS = ODD | st.text(max_size=30) | st.text(string.digits + "+-_.eE: TZ", max_size=30)


def reads_whole(parse: Callable[[str], int], text: str) -> None:
    try:
        value = parse(text)
    except ValueError:
        assert not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 19)
    else:
        assert text.lstrip("-").lstrip("0") in {str(abs(value)), ""}


def reads_number(parse: Callable[[str], float], text: str) -> None:
    try:
        value = parse(text)
    except ValueError:
        return
    assert math.isfinite(value)
    assert set(text) <= set(string.digits + "+-.eE")
    assert not text.startswith("+")


@fuzz
@given(TEXTS)
def test_whole_numbers(text: str) -> None:
    reads_whole(whole_number, text)


@fuzz
@given(TEXTS)
def test_numbers(text: str) -> None:
    reads_number(finite_number, text)


def test_the_fuzzers_find_pythons_own_parsers() -> None:
    must_find(reads_whole, int, TEXTS)
    must_find(reads_number, float, TEXTS)


@fuzz
@given(TEXTS | st.integers() | st.floats() | st.booleans() | st.none() | st.dates() | st.datetimes())
def test_times_are_refused_or_in_range(value: object) -> None:
    try:
        found = epoch_ms(value)
    except ValueError:
        return
    assert type(found) is int
    assert 0 <= found < MAX_TIME_MS


@given(st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1)), st.integers(-14, 14))
def test_an_instant_has_one_time_in_every_form(moment: datetime, hours: int) -> None:
    zoned = moment.replace(tzinfo=UTC)
    expected = int((zoned - datetime(1970, 1, 1, tzinfo=UTC)) / timedelta(microseconds=1)) // 1000
    elsewhere = zoned.astimezone(timezone(timedelta(hours=hours)))
    forms = (moment, zoned, elsewhere, moment.isoformat(), zoned.isoformat(), elsewhere.isoformat(" "), expected, str(expected))
    assert {epoch_ms(form) for form in (*forms, float(expected))} == {expected}


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("2024-01-02T03:04:05.678901", 1_704_164_645_678),
        ("2024-01-02T03:04:05.678999Z", 1_704_164_645_678),
        ("1970-01-01T00:00:00+00:00", 0),
        ("2024-01-02", 1_704_153_600_000),
    ],
)
def test_parts_of_a_millisecond_are_cut_off(text: str, ms: int) -> None:
    assert epoch_ms(text) == ms


@pytest.mark.parametrize(
    "odd", ["978_300_760_000", "1e12", " 5", "1969-12-31", "9999999999999999", "٣", True, 1.5, float("nan"), None, []]
)
def test_what_is_no_time_is_refused_with_its_value(odd: object) -> None:
    with pytest.raises(ValueError, match="must"):
        epoch_ms(odd)


def test_flags() -> None:
    assert [flag(text) for text in ("1", "true", "YES", "on", "0", "False", "no", "OFF")] == [True] * 4 + [False] * 4
    for odd in ("", "2", " 1", "y", "ja", "tru"):
        with pytest.raises(ValueError, match="true or false"):
            flag(odd)
