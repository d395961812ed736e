"""Laws of the metrics, and their equality with those of a library."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ir_measures import AP, MRR, P, R, nDCG
from numpy.typing import NDArray

from training.evaluation import ranking_metrics as metrics
from training.evaluation.ranking_metrics import (
    auc,
    auc_interval,
    average_precision,
    bootstrap,
    coverage,
    diversity,
    grouped_auc,
    grouped_auc_interval,
    ndcg_at,
    novelty,
    precision_at,
    recall_at,
    reciprocal_rank,
    reliability,
    self_information,
)

few = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def firsts(hits: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the rank of the first hit of each list, -1 without one."""
    found = np.full(len(hits), -1)
    for n, row in enumerate(hits):
        found[n] = next(iter(np.flatnonzero(row)), -1)
    return found


def run(seed: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Lists of some queries, and the number of relevant items of each, some of them unlisted."""
    rng = np.random.default_rng(seed)
    q, places = int(rng.integers(1, 12)), int(rng.integers(0, 40))
    hits = rng.random((q, places)) < rng.random()
    return hits, (hits.sum(axis=1) + rng.integers(0, 4, q)).astype(np.int64)


@few
@given(seeds)
def test_ranked_measures_equal_those_of_ir_measures(seed: int) -> None:
    hits, relevant = run(seed)
    wanted = [nDCG @ 10, nDCG @ 50, P @ 5, P @ 10, R @ 10, R @ 50, AP, AP @ 10, MRR @ 1000]
    got = [
        ndcg_at(hits, relevant, 10),
        ndcg_at(hits, relevant, 50),
        precision_at(hits, 5),
        precision_at(hits, 10),
        recall_at(hits, relevant, 10),
        recall_at(hits, relevant, 50),
        average_precision(hits, relevant),
        average_precision(hits, relevant, 10),
        reciprocal_rank(firsts(hits)),
    ]
    judged = [
        ir_measures.Qrel(f"q{q}", f"d{q}-{place}", int(hit)) for q, row in enumerate(hits) for place, hit in enumerate(row)
    ]
    judged += [
        ir_measures.Qrel(f"q{q}", f"x{q}-{n}", 1) for q, row in enumerate(hits) for n in range(int(relevant[q] - row.sum()))
    ]
    scored = [
        ir_measures.ScoredDoc(f"q{q}", f"d{q}-{place}", float(-place))
        for q, row in enumerate(hits)
        for place in range(len(row))
    ]
    scored += [ir_measures.ScoredDoc("none", "none", 0.0)]  # a run of no documents at all is refused by the library
    expected = {(m.query_id, str(m.measure)): m.value for m in ir_measures.iter_calc(wanted, judged, scored)} if judged else {}
    for measure, values in zip(wanted, got, strict=True):
        assert values == pytest.approx([expected.get((f"q{q}", str(measure)), 0.0) for q in range(len(hits))], abs=1e-9)


@few
@given(seeds)
def test_ranked_measures_lie_between_0_and_1_and_grow_when_a_hit_moves_up(seed: int) -> None:
    hits, relevant = run(seed)
    better = np.sort(hits, axis=1)[:, ::-1]
    measures: list[Callable[[NDArray[np.bool_]], NDArray[np.float64]]] = [
        lambda h: ndcg_at(h, relevant, 10),
        lambda h: recall_at(h, relevant, 10),
        lambda h: precision_at(h, 10),
        lambda h: average_precision(h, relevant),
        lambda h: reciprocal_rank(firsts(h)),
    ]
    for measure in measures:
        values = measure(hits)
        assert ((values >= 0) & (values <= 1 + 1e-12)).all()
        assert (measure(better) >= values - 1e-12).all()


@few
@given(st.lists(st.lists(st.integers(-1, 9), min_size=4, max_size=4), max_size=6), seeds)
def test_lists_beyond_accuracy_equal_a_plain_recomputation(drawn: list[list[int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    lists = np.asarray(drawn, np.int64).reshape(-1, 4)
    vectors = rng.normal(size=(10, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[3] = 0.0
    counts = rng.integers(0, 50, 10)
    bits = self_information(counts)
    assert np.exp2(-bits).sum() == pytest.approx(1.0)
    assert (bits[np.argsort(counts)][:-1] >= bits[np.argsort(counts)][1:]).all(), "what is rarer says more"
    assert coverage(lists, 10) == len({i for row in drawn for i in row if i >= 0}) / 10
    for row, new, apart in zip(drawn, novelty(lists, bits), diversity(lists, vectors), strict=True):
        there = [i for i in row if i >= 0]
        pairs = [1 - float(vectors[a] @ vectors[b]) for a, b in itertools.combinations(there, 2)]
        assert new == pytest.approx(np.mean(bits[there]) if there else 0.0)
        assert apart == pytest.approx(np.mean(pairs) if pairs else 0.0, abs=1e-9)


predictions = st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]), st.booleans(), st.integers(0, 3)), max_size=40)


@few
@given(predictions)
def test_auc_is_the_chance_that_a_true_one_is_above_a_false_one(drawn: list[tuple[float, bool, int]]) -> None:
    def plain(part: list[tuple[float, bool, int]]) -> float:
        pairs = [(s > t) + 0.5 * (s == t) for s, a, _ in part for t, b, _ in part if a and not b]
        return float(np.mean(pairs)) if pairs else float("nan")

    score, came = np.asarray([d[0] for d in drawn], np.float64), np.asarray([d[1] for d in drawn], np.bool_)
    group = np.asarray([d[2] for d in drawn], np.int64)
    assert auc(score, came) == pytest.approx(plain(drawn), nan_ok=True)
    parts = [[d for d in drawn if d[2] == g] for g in range(4)]
    said = [(plain(part), len(part)) for part in parts if plain(part) == plain(part)]
    expected = sum(a * n for a, n in said) / sum(n for _, n in said) if said else float("nan")
    assert grouped_auc(score, came, group) == pytest.approx(expected, nan_ok=True)


@few
@given(predictions, st.booleans(), st.integers(1, 12))
def test_reliability_bins_hold_every_prediction_once(drawn: list[tuple[float, bool, int]], wide: bool, bins: int) -> None:
    said, came = np.asarray([d[0] for d in drawn]), np.asarray([d[1] for d in drawn], np.bool_)
    got = reliability(said, came, bins, equal_width=wide)
    assert got.size.sum() == len(drawn)
    assert len(got.size) <= bins
    assert (got.said * got.size).sum() == pytest.approx(said.sum())
    assert (got.came * got.size).sum() == pytest.approx(came.sum())
    assert (np.diff(got.said) > 0).all()
    assert 0 <= got.error <= 1
    assert got.error >= abs(said.mean() - came.mean()) - 1e-9 if drawn else got.error == 0


def test_what_is_calibrated_has_a_small_error_and_what_is_not_a_large_one() -> None:
    rng = np.random.default_rng(0)
    said = rng.beta(1, 30, 200_000)
    came = rng.random(200_000) < said
    assert reliability(said, came).error < 0.003
    assert reliability(np.sqrt(said), came).error > 0.05


def test_an_interval_covers_the_truth_as_often_as_it_says_and_knows_that_people_repeat_themselves() -> None:
    """95 % intervals of the mean, over 200 worlds; users whose 8 queries are equal count once each."""
    covered = {"by person": 0, "one by one": 0}
    for seed in range(200):
        rng = np.random.default_rng(seed)
        people = np.repeat(np.arange(60), 8)
        values = np.repeat(rng.normal(0.0, 1.0, 60), 8)
        for how, groups in (("by person", people), ("one by one", None)):
            found = bootstrap(values, groups, resamples=300, seed=seed)
            covered[how] += found.low <= 0.0 <= found.high
            assert found.low <= found.mean <= found.high
    assert covered["by person"] >= 180
    assert covered["one by one"] <= 130


def test_the_same_seed_gives_the_same_interval_and_nothing_gives_zero() -> None:
    values = np.random.default_rng(1).random(50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(np.zeros(0)).to_json() is None, "a mean of nothing is absent"


def ranked(
    seed: int, people: int, each: int, unlike: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.int64]]:
    """Scores of `each` candidates of each user; their quality differs by user."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(people), each)
    came = rng.random(people * each) < 0.3
    return came * (1 + unlike * rng.normal(size=people))[person] + rng.normal(size=people * each), came, person


@few
@given(seeds, st.booleans())
def test_intervals_of_auc_hold_it_and_are_nothing_where_every_person_is_the_same(seed: int, few_scores: bool) -> None:
    score, came, person = ranked(seed, 6, 40, 1.0)
    score = score.round(1) if few_scores else score
    for interval, plain in (
        (auc_interval(score, came, person), auc(score, came)),
        (grouped_auc_interval(score, came, person), grouped_auc(score, came, person)),
    ):
        assert interval is not None
        assert interval.mean == pytest.approx(plain)
        assert 0 <= interval.low <= interval.high <= 1
    same = np.tile(score[:40], 5), np.tile(came[:40], 5), np.repeat(np.arange(5), 40)
    for interval in (auc_interval(*same), grouped_auc_interval(*same)):
        assert interval is None or interval.low == pytest.approx(interval.high)
    none = np.zeros(len(score), np.bool_)
    assert auc_interval(score, none, person) is grouped_auc_interval(score, none, person) is None


def test_binned_resamples_equal_those_that_are_ordered_anew_and_bundles_are_as_wide_as_people(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    score, came, person = ranked(1, 300, 40, 0.8)
    found = auc_interval(score, came, person)
    assert found is not None
    rng, rows = np.random.default_rng(5), [np.flatnonzero(person == p) for p in range(300)]
    anew = []
    for _ in range(400):
        drawn = np.concatenate([rows[p] for p in rng.integers(0, 300, 300)])
        anew.append(auc(score[drawn], came[drawn]))
    low, high = np.quantile(anew, [0.025, 0.975])
    width = high - low
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.2 * width)
    one_by_one = auc_interval(score, came, np.arange(len(score)))
    assert one_by_one is not None
    assert one_by_one.high - one_by_one.low < 0.8 * width, "who is drawn is a person"
    monkeypatch.setattr(metrics, "AUC_GROUPS", 100)
    bundled = auc_interval(score, came, person)
    assert bundled is not None
    assert bundled.high - bundled.low == pytest.approx(width, rel=0.35)
