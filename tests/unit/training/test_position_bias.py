"""Position bias is measured by choices among shown items, and slates that were shown are re-ranked as serving would."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.data.slates.examination import FIXED, POSITIONS, Examination, fixed_curve
from training.ranking.choice import helps
from training.ranking.position_bias import Choices, choices_in, measured


def choices(curve: NDArray[np.float64], n: int, *, taste: float = 0.0, seed: int = 0) -> tuple[Choices, NDArray[np.float32]]:
    """Choices of `n` slates of 60 items at random positions, and what the users like, of which `taste` is their own."""
    rng, c = np.random.default_rng(seed), len(curve)
    items = np.stack([rng.permutation(60)[:c] for _ in range(n)])
    liking = rng.normal(size=60)[items] + taste * rng.normal(size=(n, c))
    positions = np.stack([rng.permutation(c) for _ in range(n)])
    logits = liking + curve[positions]
    chosen = np.zeros((n, c), np.float32)
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    chosen[np.arange(n), [rng.choice(c, p=row) for row in odds]] = 1
    found = Choices(np.arange(n) % 997, items, positions, chosen, np.ones((n, c), np.bool_))
    return found, liking.astype(np.float32)


CURVE = np.log(0.2 + 0.8 * np.exp(-np.arange(8) / 2))


def test_a_known_curve_lies_within_its_interval() -> None:
    found = measured(choices(CURVE, 3_000)[0])
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert ((found.low <= CURVE) & (found.high >= CURVE)).sum() >= 7
    assert found.log[:8] == pytest.approx(CURVE, abs=0.25)
    assert found.log[0] == 0
    assert len(found.log) == POSITIONS


def test_what_a_ranker_knows_of_users_corrects_the_curve() -> None:
    """Tastes that differ flatten a curve that is measured by items alone."""
    given, liking = choices(CURVE, 3_000, taste=2.0)
    alone, knowing = measured(given), measured(given, 0.5 * liking)
    assert alone is not None
    assert knowing is not None
    assert knowing.scale == pytest.approx(2.0, rel=0.2)
    assert np.abs(knowing.log[:8] - CURVE).mean() < 0.5 * np.abs(alone.log[:8] - CURVE).mean()


def test_few_choices_give_the_fixed_curve_and_fewer_none() -> None:
    assert measured(choices(CURVE, 99)[0]) is None
    some, many = (measured(choices(np.zeros(8), n)[0]) for n in (100, 3_000))
    assert some is not None
    assert many is not None
    assert np.abs(many.log[:8]).mean() < np.abs(some.log[:8]).mean(), "many choices outweigh it"
    assert measured(None) is None


def test_a_measured_curve_is_read_as_it_was_written() -> None:
    found = measured(choices(CURVE, 500)[0])
    assert found is not None
    again = Examination.of_json(found.to_json())
    assert again is not None
    assert again.log == pytest.approx(found.log, abs=1e-3)
    assert again.choices == 500
    assert again.scale == pytest.approx(found.scale, abs=1e-3)
    for other in (
        FIXED.to_json(),
        None,
        {"measured": True},
        {"measured": True, "examination": [[1, 2]], "choices": 1, "scale": 1},
    ):
        assert Examination.of_json(other) is None


def test_positions_that_are_unknown_or_beyond_the_curve_have_a_probability() -> None:
    assert FIXED.at(np.asarray([-1, 0, 3, POSITIONS + 9])) == pytest.approx([1, 1, 0.5, POSITIONS**-0.5])
    assert fixed_curve()[0] == 0


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), min_size=1, max_size=4), min_size=1, max_size=5
    )
)
def test_slates_without_a_choice_or_a_position_are_no_choices(slates: list[list[tuple[int, bool, bool]]]) -> None:
    rows = [
        (f"u{n}", n, f"i{item}", None if lost else place, liked)
        for n, slate in enumerate(slates * 120)
        for place, (item, liked, lost) in enumerate(slate)
    ]
    names = ["user_id", "slate", "item_id", "position", "liked"]
    found = choices_in(pl.DataFrame(rows, schema=names, orient="row", infer_schema_length=None).cast({"position": pl.Int64}))
    usable = [s for s in slates if len(s) > 1 and any(liked for _, liked, _ in s) and not any(lost for *_, lost in s)]
    if not usable:
        assert found is None
        return
    assert found is not None
    assert len(found) == 120 * len(usable)
    assert found.valid.sum() == 120 * sum(map(len, usable))
    assert found.chosen.sum(axis=1) == pytest.approx(1)


def test_slates_are_kept_if_they_help_on_slates_and_do_not_clearly_harm_history() -> None:
    rng = np.random.default_rng(0)
    history, lists = rng.random(400), rng.random(400)
    noise = rng.normal(scale=0.1, size=400)
    noise -= noise.mean()
    assert helps((history + noise, history), (lists + 0.01, lists))
    assert not helps((history + noise - 0.02, history), (lists + 0.01, lists)), "four standard errors lower"
    assert not helps((history + noise, history), (lists - 0.01, lists))
    none = np.zeros(0)
    assert helps((history + noise, history), (none, none))
    assert helps((none, none), (none, none))
