"""Drift: none on equal distributions, more the further events move, and what moved is named."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from learning_corpus import POSITIVE, corpus

from models.units import DAY_MS
from schemas.records import Interaction, Item
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.evaluation.drift import LISTED, MOVED, Drift, _recent, drift_of
from training.evaluation.stability import chance_bound, edges_of, stability_index

COUNTS = st.lists(st.integers(0, 200), min_size=2, max_size=8).filter(any)
HOUR = 3_600_000


def counts(drawn: list[int]) -> np.ndarray:
    return np.asarray(drawn, np.float64)


@given(COUNTS, st.integers(1, 50))
def test_equal_shares_have_not_moved_whatever_their_number(drawn: list[int], times: int) -> None:
    assert stability_index(counts(drawn), counts(drawn) * times) == pytest.approx(0.0, abs=1e-12)


@given(COUNTS, st.data())
def test_the_index_is_symmetric_never_negative_and_finite(drawn: list[int], data: st.DataObject) -> None:
    other = data.draw(st.lists(st.integers(0, 200), min_size=len(drawn), max_size=len(drawn)).filter(any))
    one = float(stability_index(counts(drawn), counts(other)))
    assert 0 <= one < np.inf
    assert one == pytest.approx(float(stability_index(counts(other), counts(drawn))))


@given(COUNTS, st.data())
def test_the_index_does_not_fall_the_further_events_move(drawn: list[int], data: st.DataObject) -> None:
    to = data.draw(st.lists(st.integers(0, 200), min_size=len(drawn), max_size=len(drawn)).filter(any))
    before, target = counts(drawn) / sum(drawn), counts(to) / sum(to)
    found = [
        float(stability_index(1_000 * before, 1_000 * ((1 - share) * before + share * target)))
        for share in np.linspace(0, 1, 9)
    ]
    assert found[0] == pytest.approx(0.0, abs=1e-12)
    assert all(low <= high + 1e-12 for low, high in pairwise(found))


def test_nothing_is_compared_with_an_empty_sample() -> None:
    assert stability_index(np.zeros(4), np.ones(4)) == 0.0
    assert stability_index(np.zeros((2, 4)), np.ones((2, 4))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("n", "m"), [(50, 50), (2_000, 60), (5_000, 5_000)])
def test_by_chance_the_index_exceeds_its_bound_about_once_in_a_thousand(n: int, m: int) -> None:
    rng, shares = np.random.default_rng(0), np.asarray([0.4, 0.3, 0.2, 0.1])
    before, after = rng.multinomial(n, shares, 20_000).astype(float), rng.multinomial(m, shares, 20_000).astype(float)
    beyond = float((stability_index(before, after) > chance_bound(before, after)).mean())
    assert beyond < 0.004, "0.001 for large samples"


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(2, 10))
def test_bins_are_few_and_distinct(values: list[float], bins: int) -> None:
    edges = edges_of(np.asarray([*values, np.nan]), bins)
    assert len(edges) < bins
    assert (np.diff(edges) > 0).all()


def people(seed: int, n: int, n_users: int = 60, start: int = 0, *, shift: float = 0.0, like: float = 0.3) -> list[Interaction]:
    """Events of `n_users` in steady state: colours by taste, of which a share `shift` goes to the colour after it."""
    rng = np.random.default_rng(seed)
    found = []
    for k in range(n):
        user = int(rng.integers(n_users))
        colour = (user + (rng.random() < 0.2) + (rng.random() < shift)) % 3
        item = int(rng.choice(np.flatnonzero(np.arange(40) % 3 == colour)))
        action = "like" if rng.random() < like else "view"
        at = 10**9 + HOUR * (start + k)
        found.append(Interaction(f"{start + k}", f"u{user}", f"i{item}", at, action, float(rng.integers(1, 6))))
    return found


def report(old: list[Interaction], new: list[Interaction], items: list[Item] | None = None) -> Drift:
    made = Corpus("glass", items or corpus()[0], EventFrame.of([*old, *new]), POSITIVE)
    return drift_of(made, "champion", old[-1].event_time)


STATIONARY = ("action", "liked", "category", "value", "seconds_since_event", "user_events_7d", "item_events_7d")


@pytest.mark.parametrize("seed", range(5))
def test_equal_behaviour_has_not_moved(seed: int) -> None:
    found = report(people(seed, 3_000), people(seed + 100, 1_500, start=3_000))
    assert {one.name for one in found.features if one.moved} & set(STATIONARY) == set()
    assert found.moved_users <= 1
    assert (found.before, found.after, found.compared, found.new_users) == (3_000, 1_500, 60, 0)


def test_more_users_move_and_further_the_larger_the_shift() -> None:
    found = [report(people(1, 6_000), people(2, 3_000, start=6_000, shift=shift)) for shift in (0.0, 0.4, 1.0)]
    moved = [one.moved_users for one in found]
    assert moved[0] < moved[1] < moved[2]
    assert moved[2] >= 50
    assert len(found[2].most) == LISTED
    assert [one.index for one in found[2].most] == sorted((one.index for one in found[2].most), reverse=True)
    bins = found[2].most[0].bins
    assert len(bins) == 2
    assert "→" in bins[0]


def test_the_feature_that_moved_comes_first_in_words() -> None:
    found = report(people(1, 3_000), people(2, 1_500, start=3_000, like=0.8))
    assert {one.name for one in found.features if one.moved} & set(STATIONARY) == {"action", "liked"}
    assert found.features[0].index > MOVED
    assert "action (" in found.lines()[0]
    action = next(one for one in found.features if one.name == "action")
    assert [said.split(":")[0] for said in action.bins] == ["like", "view"]
    later = report(people(1, 3_000), [replace(event, value=(event.value or 0) + 10) for event in people(2, 1_500, start=3_000)])
    assert {one.name for one in later.features if one.moved} & set(STATIONARY) == {"value"}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), min_size=1, max_size=60))
def test_events_of_the_last_week_are_counted(drawn: list[tuple[int, int]]) -> None:
    times = sorted(day for _, day in drawn)
    frame = pl.DataFrame({"user_id": [f"u{u}" for u, _ in drawn], "event_time": [day * DAY_MS for day in times]})
    found = _recent(frame, "user_id").to_list()
    users = [u for u, _ in drawn]
    for n, (user, day) in enumerate(zip(users, times, strict=True)):
        assert found[n] == sum(users[k] == user and times[k] >= day - 7 for k in range(n + 1))


def test_new_users_items_and_empty_parts_are_counted() -> None:
    old = people(1, 500)
    new = [replace(event, user_id=f"n{n}", item_id="unknown") for n, event in enumerate(people(2, 100, start=500))]
    found = report(old, new)
    assert found.new_users == 100
    assert found.compared == 0
    assert next(one for one in found.features if one.name == "category").bins[0].startswith("unknown item: 0% → 100%")
    assert report(old, []).features == ()
    assert drift_of(Corpus("glass", corpus()[0], EventFrame.of(old), POSITIVE), "none", 0).features == ()


def test_files_name_no_users_and_the_report_is_bounded() -> None:
    found = report(people(1, 6_000, 600), people(2, 6_000, 600, start=6_000, shift=1.0))
    said, kept = found.to_json(), json.dumps(found.to_json(named=False))
    assert set(said["users"]["most"]) <= {f"u{n}" for n in range(600)}
    assert said["users"]["most"]
    assert "most" not in json.loads(kept)["users"]
    assert not any(f'"{user}"' in kept for user in said["users"]["most"])
    assert len(json.dumps(said)) < 8_000
