"""The gate with too few newest events: each user's last like is judged, with valid intervals."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shop import POSITIVE, shop

from models.pipeline.slot import ModelSlot
from models.rules import SHOWN, PositiveRule
from models.units import DAY_MS
from schemas.errors import BadDataset
from schemas.records import Interaction
from training.data.amounts import FEWEST_EVENTS, demand_enough, demand_trainable
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.discount import expected_discount
from training.evaluation.bounds import LEAVE_LAST_OUT, PREQUENTIAL, STANDARD
from training.evaluation.evaluate import EvaluationPlan, Figures, QueryOutcome, evaluate
from training.evaluation.holdout import held_out, last_out, without_revealing_slates
from training.evaluation.ranking_metrics import bootstrap, expanded_bootstrap, sign_flip_test
from training.ranking.choice import listwise_ndcg
from training.ranking.examples import Examples
from training.ranking.fit import with_passes
from training.ranking.kinds import make_ranker
from training.recipe import LearnSettings, RankerSettings
from training.release.gate import judge
from training.release.parity import Parity
from training.replay.outcomes import Outcomes
from training.replay.probe import Probed
from training.retrieval.next_item import _gain

HELD = Parity(worst=2e-7, differing=0, tied=0, swapped=0, requests=1_000, rank_p99_ms=4.0, candidates=20)
NONE = np.zeros(0, np.int32)
LIKED = PositiveRule(POSITIVE)

drawn_events = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from(["view", "like"])), min_size=1, max_size=80
)


def made(drawn: list[tuple[int, int, str]]) -> list[Interaction]:
    return [Interaction(f"e{n}", f"u{u}", f"i{i}", 1_000 + n // 2, action) for n, (u, i, action) in enumerate(drawn)]


def figures(ranks: list[int], each: int = 1) -> Figures:
    """Figures with `each` queries of every user."""
    found = Figures(ranks=ranks)
    for n, rank in enumerate(ranks):
        probed = Probed(rank, "ranked", [], 0, 0, NONE, NONE, np.zeros((0, 0), np.float32))
        none = np.zeros(0, np.bool_)
        found.asked.append(QueryOutcome(f"u{n // each}", "i", probed, False, False, False, (), none, 0, none.reshape(0, 0)))
    return found


# ---- held-out events


@given(drawn_events, st.integers(-1, 1_040))
def test_of_each_person_the_last_like_is_kept_and_nothing_after_it_is_trained_on(
    drawn: list[tuple[int, int, str]], after_ms: int
) -> None:
    events = made(drawn)
    held = last_out(events, POSITIVE, after_ms)
    train, kept = held.events[: held.trained], held.events[held.trained :]
    assert Counter(e.event_id for e in held.events) == Counter(e.event_id for e in events), "each event once"
    for part in (train, kept):
        assert sorted(part, key=lambda e: int(e.event_id[1:])) == list(part), "each in the order of time"
    assert int(len(events) * held.share) == held.trained
    liked = {events[n].event_id for n in Outcomes(events, LIKED, ("positive",)).liked()}
    asked = Counter(e.user_id for e in kept if e.event_id in liked)
    assert (held.queries, held.people) == (asked.total(), len(asked))
    assert set(asked) == {e.user_id for e in kept} == set(held.held_from_ms), "who is not asked loses nothing"
    for user, queries in asked.items():
        mine = [e.event_id for e in events if e.user_id == user]
        of_kept = [e.event_id for e in kept if e.user_id == user]
        assert mine[-len(of_kept) :] == of_kept
        assert len(of_kept) < len(mine), "something is left to train on"
        assert queries == 1
        assert of_kept[0] in liked
        assert all(e.event_time > after_ms for e in kept), "a champion is not asked about what it has learned"


@given(drawn_events)
def test_columns_and_a_list_are_kept_alike(drawn: list[tuple[int, int, str]]) -> None:
    events = made(drawn)
    one, other = last_out(events, POSITIVE), last_out(EventFrame.of(events), POSITIVE)
    assert list(one.events) == list(other.events)
    assert replace(one, events=()) == replace(other, events=())


def test_a_shop_of_30_items_and_20_people_is_judged_by_everybodys_last_like() -> None:
    for seed in range(10):
        _, events = shop(seed)
        held = held_out(events, POSITIVE, 0.9, 1_000)
        assert held.protocol == LEAVE_LAST_OUT
        assert held.people >= 18
        assert held.queries == held.people
        assert held.trained >= FEWEST_EVENTS


def test_where_the_newest_events_are_enough_they_are_kept_as_before() -> None:
    _, events = shop(n_items=60, n_people=200)
    held = held_out(events, POSITIVE, 0.9, 1_000)
    assert held.protocol == PREQUENTIAL
    assert held.events is events
    assert held.trained == int(len(events) * 0.9)
    assert held.queries >= STANDARD.queries
    assert held.people >= STANDARD.people


def test_too_little_to_judge_by_is_said_in_numbers_before_anything_is_trained() -> None:
    _, events = shop(n_people=STANDARD.last - 1)
    with pytest.raises(BadDataset) as refused:
        held_out(events, POSITIVE, 0.9, 1_000)
    assert refused.value.code == "too_little_to_judge"
    for number in (
        f"{STANDARD.last - 1} users",
        f"{STANDARD.last} are needed",
        f"{STANDARD.queries} first interactions",
        f"{STANDARD.people}",
    ):
        assert number in refused.value.message
    assert "--force" not in refused.value.message


def test_a_champion_is_judged_on_what_came_after_it() -> None:
    _, events = shop()
    until_ms = events[int(len(events) * 0.6)].event_time
    held = held_out(events, POSITIVE, 0.9, 1_000, "20260101-abc", until_ms)
    assert held.protocol == LEAVE_LAST_OUT
    assert all(event.event_time > until_ms for event in held.events[held.trained :])
    with pytest.raises(BadDataset, match="since 20260101-abc was trained"):
        held_out(events, POSITIVE, 0.9, 1_000, "20260101-abc", events[-20].event_time)
    other = held_out(events, POSITIVE, 0.9, 1_000, "20260101-abc", events[-1].event_time)
    assert other.people == held_out(events, POSITIVE, 0.9, 1_000).people, "it has learned all: of other data, or nothing is new"


def test_of_slates_shown_to_who_is_asked_none_is_learned_from_whose_window_reaches_the_query() -> None:
    items, events = shop()
    first = events[0].event_time
    shown = [Interaction(f"s{n}", event.user_id, event.item_id, event.event_time, SHOWN) for n, event in enumerate(events)] + [
        Interaction("s", "somebody-else", "p00", first, SHOWN)
    ]
    told = EventFrame.of(sorted(shown, key=lambda event: event.event_time))
    seen = told.frame.select("user_id", "item_id", "event_time")
    held = last_out(events, POSITIVE)
    corpus = Corpus("shop", items, events, POSITIVE, logged=lambda *_: seen, shown=told)
    left = without_revealing_slates(corpus, held, [2 * DAY_MS])
    assert left.events is held.events
    assert left.shown is not None
    assert left.logged is not None
    for slates in (left.shown.frame, left.logged(0, 0, 0, {})):
        rows = slates.select(pl.col("user_id", "event_time").cast(pl.String)).rows()
        wanted = [
            (event.user_id, str(event.event_time))
            for event in told
            if event.event_time < held.held_from_ms.get(event.user_id, 10**15) - 2 * DAY_MS
        ]
        assert rows == wanted
        assert 0 < len(rows) < len(told)
    assert without_revealing_slates(corpus, replace(held, held_from_ms={}), []).shown is told


def test_each_is_asked_after_all_that_is_trained_on_and_nothing_else() -> None:
    """Held-out events, of the same user or others, change no answer."""
    items, events = shop()
    held = last_out(events, POSITIVE)

    def asked(kept: list[Interaction]) -> list[tuple[str, str, int]]:
        both = [*held.events[: held.trained], *kept]
        share = (held.trained + 0.5) / len(both)
        found = evaluate(items, both, LIKED, EvaluationPlan(share, first=True, independent=True), slot=ModelSlot())
        return [(one.user_id, one.item_id, one.probed.rank) for one in found.asked]

    kept = list(held.events[held.trained :])
    together = asked(kept)
    assert len(together) == held.queries
    for user in sorted(held.held_from_ms)[:3]:
        assert asked([event for event in kept if event.user_id == user]) == [one for one in together if one[0] == user]
    assert together != [
        (one.user_id, one.item_id, one.probed.rank)
        for one in evaluate(items, held.events, LIKED, EvaluationPlan(held.share, first=True), slot=ModelSlot()).asked
    ], "as opposed to events that are applied one after the other"


# ---- the verdict


@pytest.mark.parametrize("people", [STANDARD.last, 20, 60])
def test_the_same_ranks_are_not_better_all_first_pass_and_all_last_are_refused(people: int) -> None:
    ranks = np.random.default_rng(0).integers(0, 20, 2 * people).tolist()
    serving = figures(ranks, 2)
    judged = {
        name: judge(figures(mine, 2), serving, 0.0, HELD, protocol=LEAVE_LAST_OUT)
        for name, mine in {"same": ranks, "first": [0] * len(ranks), "last": [19] * len(ranks)}.items()
    }
    assert {name: verdict.passed for name, verdict in judged.items()} == {"same": False, "first": True, "last": False}
    for verdict in judged.values():
        found = verdict.to_json()
        assert (found["protocol"], found["queries"], found["people"]) == (LEAVE_LAST_OUT, 2 * people, people)
        low, high = found["interval"]
        assert low <= found["ndcg@10"] - found["against"] + 1e-4
        assert high >= found["ndcg@10"] - found["against"] - 1e-4
        assert 0 <= found["chance"] <= 1
    assert judged["same"].to_json()["chance"] == 1.0
    assert "not better beyond noise" in judged["last"].reasons[0]
    assert f"over {people} users" in judged["last"].reasons[0]


def test_fewer_people_than_needed_are_not_judged_by() -> None:
    few = STANDARD.last - 1
    verdict = judge(figures([0] * 2 * few, 2), figures([9] * 2 * few, 2), 0.0, HELD, protocol=LEAVE_LAST_OUT)
    assert verdict.reasons == [f"only {few} users to judge by, {STANDARD.last} are needed"]
    found = verdict.to_json()
    assert found["interval"] is None, "what is not known is absent"
    assert found["difference_low"] is None


@pytest.mark.parametrize("people", [STANDARD.last, 20])
def test_of_releases_that_rank_alike_few_pass_and_of_much_worse_ones_none(people: int) -> None:
    """One in twenty passes, within the noise of 600 draws: three standard deviations are 2.7 %."""
    rng, discount = np.random.default_rng(0), 1.0 / np.log2(np.arange(20) + 2.0)
    discount[10:] = 0.0

    def passes(mine: np.ndarray, theirs: np.ndarray) -> bool:
        difference, group = discount[mine] - discount[theirs], np.arange(people)
        if sign_flip_test(difference, group) > (1 - STANDARD.level) / 2:
            return False
        return expanded_bootstrap(difference, group, STANDARD.level).low > 0

    alike = sum(passes(*rng.integers(0, 20, (2, people))) for _ in range(600))
    assert 0 < alike <= 0.077 * 600
    assert not any(passes(rng.integers(0, 20, people), rng.integers(0, 8, people)) for _ in range(100))
    assert sum(passes(rng.integers(0, 3, people), rng.integers(0, 20, people)) for _ in range(100)) > 95


@given(st.lists(st.floats(-1, 1).map(lambda value: round(value, 3)), min_size=1, max_size=7), st.integers(1, 3))
def test_the_sign_flip_test_counts_all_signs(values: list[float], each: int) -> None:
    differences, groups = np.repeat(values, each), np.repeat(np.arange(len(values)), each)
    flips = [
        sum(sign * value for sign, value in zip(signs, values, strict=True)) for signs in product((1, -1), repeat=len(values))
    ]
    assert sign_flip_test(differences, groups) == pytest.approx(
        np.mean([flip >= sum(values) - 1e-9 for flip in flips]), abs=1e-9
    )


def test_of_many_people_signs_are_drawn() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(0.1, 1.0, 12)
    exact = sign_flip_test(values, np.arange(12))
    doubled = np.concatenate([values, [1e-9] * 10])
    assert sign_flip_test(doubled, np.arange(22)) == pytest.approx(exact, abs=0.02)
    assert sign_flip_test(np.zeros(5), np.arange(5)) == 1.0


@given(st.integers(2, 30), st.integers(0, 1_000))
def test_of_few_people_the_interval_is_wider(people: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=people)
    plain = bootstrap(values, level=0.9, resamples=4_000)
    wide = expanded_bootstrap(values, np.arange(people), 0.9)
    assert wide.low <= plain.low + 0.06
    assert wide.high >= plain.high - 0.06
    assert wide.mean == plain.mean
    with pytest.raises(ValueError, match="two groups"):
        expanded_bootstrap(values[:1], np.zeros(1, np.int64))


# ---- ties


@settings(max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=8), st.randoms())
def test_items_that_score_the_same_gain_the_same_wherever_they_lie(scores: list[int], random: object) -> None:
    discount = 1.0 / np.log2(np.arange(len(scores)) + 2.0)
    given_scores = np.asarray([scores], np.float64)
    found = expected_discount(given_scores, discount)[0]
    order = np.random.default_rng(hash(tuple(scores)) % 1000).permutation(len(scores))
    assert expected_discount(given_scores[:, order], discount)[0] == pytest.approx(found[order])
    assert found.sum() == pytest.approx(discount.sum())
    for score in set(scores):
        assert len(set(np.round(found[np.asarray(scores) == score], 12))) == 1
    best = np.flatnonzero(np.asarray(scores) == max(scores))
    assert found[best[0]] == pytest.approx(discount[: len(best)].mean())


@given(st.integers(0, 12), st.integers(0, 12))
def test_while_towers_are_trained_an_item_among_equals_gains_what_it_does_on_average(better: int, equal: int) -> None:
    each = [1 / np.log2(place + 2) if place < 10 else 0.0 for place in range(better, better + equal + 1)]
    assert _gain(better, equal) == pytest.approx(np.mean(each))


def test_a_ranker_that_scores_all_alike_is_not_taken_for_a_good_one() -> None:
    """Examples list liked items first, so that equal scores in that order would look perfect."""
    model = make_ranker(3, 1, RankerSettings(width=4, experts=1)).eval()
    features, gains = np.zeros((5, 8, 3), np.float32), np.zeros((5, 8), np.float32)
    gains[:, 0] = 1.0
    there = np.ones((5, 8), np.bool_)
    examples = Examples(features, gains[..., None], gains, there, np.zeros((5, 8), np.float32), np.zeros(5, np.bool_))
    assert listwise_ndcg(model, examples) == pytest.approx(np.mean(1 / np.log2(np.arange(8) + 2.0)))


# ---- minimum amounts


def test_what_training_lacks_is_said_with_its_figures() -> None:
    items, events = shop()
    with pytest.raises(BadDataset, match=f"{FEWEST_EVENTS - 1} events on items of the catalogue, {FEWEST_EVENTS} are needed"):
        demand_enough(events[: FEWEST_EVENTS - 1], POSITIVE)
    with pytest.raises(BadDataset, match=r"actions are view \(\d+\), like \(\d+\)"):
        demand_enough(events, "action == 'lik'")
    demand_trainable(items, events, POSITIVE, LearnSettings())
    again = [replace(e, event_id=f"{e.event_id}-{k}", event_time=e.event_time + k) for k in range(2) for e in events]
    with pytest.raises(BadDataset, match="no user has a first interaction"):
        demand_trainable(items, again, POSITIVE, LearnSettings(replayed_share=0.3))


def test_few_queries_are_passed_over_more_often() -> None:
    few, many = with_passes(30, RankerSettings(), 40), with_passes(4_000, RankerSettings(), 40)
    assert few.epochs == 40
    assert many == RankerSettings(), "what has enough steps keeps its passes"
