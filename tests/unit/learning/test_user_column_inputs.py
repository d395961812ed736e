"""Laws of likes and of the user tower's inputs over columns: equal to those of one record at a time, to the last bit."""

from __future__ import annotations

import numpy as np
from grown import STREAMS, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_history import history_inputs, liked_history

from models.release.sequences import EVENT_WIDTH, LENGTH, STEP, Vocabulary, inputs_of, length_of
from models.rules import PositiveRule
from models.state.rows import HISTORY, UserRecord
from models.state.users import Users
from schemas.records import Interaction

# every kind of constant that Python's grammar has, and columns
NUMBERS = st.sampled_from(["0", "1", "4", "16777217", "9007199254740992", "9007199254740993", f"{2**127}", f"{10**400}"])
CONSTANTS = (
    NUMBERS
    | st.sampled_from(["None", "True", "False", "...", "0j", "4j", "b'rate'", "'rate'", "''", "1e999"])
    | st.floats(0, 1e6, width=32).map(repr)
    | st.floats(0, 1e6).map(repr)
)
COMPARISONS = st.sampled_from(["==", "!=", "<", "<=", ">", ">="])


def compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    chain = st.tuples(inner, st.lists(st.tuples(COMPARISONS, inner), min_size=1, max_size=3)).map(
        lambda drawn: " ".join([f"({drawn[0]})", *(f"{op} ({operand})" for op, operand in drawn[1])])
    )
    joined = st.tuples(st.sampled_from([" and ", " or "]), st.lists(inner, min_size=2, max_size=3)).map(
        lambda drawn: drawn[0].join(f"({part})" for part in drawn[1])
    )
    return chain | joined | inner.map("not ({})".format)


RULES = st.recursive(st.sampled_from(["value", "value", "action"]) | CONSTANTS, compound, max_leaves=8)
VALUES = st.floats(width=32) | st.sampled_from([0.0, -0.0, 1.0, 4.0, 2.0**24, 2.0**53, 2.0**127, np.inf, -np.inf, np.nan])


@settings(max_examples=500)
@given(RULES, st.sampled_from(["rate", "view", ""]), st.lists(VALUES, max_size=12))
def test_a_rule_over_a_column_is_the_rule_of_each_element(text: str, action: str, values: list[float]) -> None:
    rule, column = PositiveRule(text), np.asarray(values, np.float32)
    many = rule.many(action, column)
    assert many.dtype == np.bool_
    assert many.tolist() == [rule(action, None if np.isnan(value) else value) for value in column.tolist()]


POSITIVE = st.sampled_from(
    ["True", "value >= 4", "action == 'like' or value >= 0.7", "action != 'view' and not value < 3", "value == None"]
)
VOCABULARIES = st.builds(
    Vocabulary,
    st.sampled_from([(), ("view",), ("like", "🛒", "rate", "view", "", "action 1", "action 2")]),
    st.floats(-5, 5),
    st.sampled_from([0.0, 1.0, 1.37]),
    POSITIVE,
)


@settings(max_examples=50, deadline=None)
@given(STREAMS, VOCABULARIES)
def test_likes_and_inputs_of_columns_are_those_of_records(
    streams: dict[str, list[Interaction]], vocabulary: Vocabulary
) -> None:
    rows = [*rows_of(streams), None]
    users = Users.read(rows)
    liked = vocabulary.liked_of(users)
    events, mask = inputs_of(users, vocabulary, liked)
    length, longest = length_of(users), int(users.size.max())
    assert length % STEP == 0
    assert min(longest, LENGTH) <= length < max(longest, 1) + STEP
    assert liked.shape == (len(rows), HISTORY)
    assert events.shape == (len(rows), length, EVENT_WIDTH)
    assert mask.shape == (len(rows), length)
    assert events.dtype == mask.dtype == np.float32
    for q, row in enumerate(rows):
        record = UserRecord() if row is None else UserRecord.decode(row)
        expected = liked_history(vocabulary, record)
        assert liked[q, : len(expected)].tolist() == expected.tolist()
        assert not liked[q, len(expected) :].any()
        n = min(length, len(expected))
        assert n == min(LENGTH, len(expected))
        inputs = history_inputs(record, vocabulary, expected) if n else np.zeros((0, EVENT_WIDTH), np.float32)
        assert events[q, length - n :].tobytes() == inputs.tobytes()
        assert not events[q, : length - n].any()
        assert mask[q].tolist() == [0.0] * (length - n) + [1.0] * n
