"""Values in messages are spelled as the sender wrote them, not as Python represents them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.codec import decode
from schemas.errors import BadEvent, BadRequest, BadRules
from schemas.parsing import MAX_LEVELS, MAX_SHOWN, shown
from schemas.rules import decode_rules
from schemas.validation import request_from

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    ("value", "spelled"),
    [
        (True, "true"),
        (None, "null"),
        (2.5, "2.5"),
        ("true", "'true'"),
        (["a", None, {"b": False}], '["a", null, {"b": false}]'),
        ([b"a", date(2024, 1, 2)], '["a", "2024-01-02"]'),
        (["\x1b\u202e"], '["\\u001b\\u202e"]'),
        ([1] * 100, "[" + "1, " * 12 + "1,…"),
        (b"a", "'a'"),
        (Decimal("1.5"), "'1.5'"),
        (date(2024, 1, 2), "'2024-01-02'"),
    ],
)
def test_values_are_spelled_as_in_json(value: Any, spelled: str) -> None:
    assert shown(value) == spelled


@given(JSON)
def test_whatever_is_shown_is_printable_and_short(value: Any) -> None:
    found = shown(value)
    assert found.isprintable()
    assert len(found) <= 12 * MAX_SHOWN


def test_an_answer_spells_what_is_wrong_as_the_request_did() -> None:
    for field, value in (("k", True), ("explain", [None]), ("user_id", False)):
        with pytest.raises(BadRequest) as refused:
            request_from({"user_id": "u", field: value}, request_id="r")
        assert refused.value.message.endswith({"k": "is true", "explain": "is [null]", "user_id": "is false"}[field])


@pytest.mark.parametrize("levels", [MAX_LEVELS + 1, 100_000])
@pytest.mark.parametrize(("start", "end"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_json_that_is_nested_too_deep_is_refused_as_such(levels: int, start: bytes, end: bytes) -> None:
    value = start * levels + b"1" + end * levels
    with pytest.raises(BadEvent, match="levels deep") as event:
        decode("interaction", value, [("content-type", b"application/json")])
    with pytest.raises(BadRules, match="levels deep") as rules:
        decode_rules(value)
    assert (event.value.code, rules.value.code) == ("too_deep", "too_deep")


def test_json_of_as_many_levels_as_are_read_is_not_too_deep() -> None:
    value = b'{"a":' * MAX_LEVELS + b"1" + b"}" * MAX_LEVELS
    assert decode("interaction", value, [("content-type", b"application/json")])[0].keys() == {"a"}
    with pytest.raises(BadEvent, match="not JSON") as broken:
        decode("interaction", value[:-1], [("content-type", b"application/json")])
    assert broken.value.code == "not_json"


def test_repeats_are_off_unless_a_request_asks_for_them() -> None:
    assert request_from({"user_id": "u", "candidates": ["a"], "repeats": True}, request_id="r").repeats
    assert not request_from({"user_id": "u", "repeats": False}, request_id="r").repeats
    assert request_from({"user_id": "u", "repeats": True}, request_id="r").repeats
