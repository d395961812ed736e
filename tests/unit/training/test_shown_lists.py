"""Slates that another system showed are re-ranked by requests, beside the shown order and baselines that know no user."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner

from models.pipeline.clock import after_all
from models.pipeline.pipeline import CandidatePipeline
from models.rules import PositiveRule
from schemas.records import Request, Slate, SlateItem
from training.cli.evaluate import evaluate_command
from training.data.corpus import open_corpus
from training.data.slates.examination import Examination, fixed_curve
from training.data.slates.logged import LoggedSlate
from training.evaluation.evaluate import EvaluationPlan, evaluate
from training.evaluation.shown_lists import ORDERS, ListRanker, shown_test
from training.replay.world import SimulatedWorker

HOUR = 3_600_000
POSITIVE = "action == 'click'"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 users see six items in each of 400 searches; the first of three that they like best is clicked."""
    rng = np.random.default_rng(0)
    rows = []
    for n in range(400):
        user, shown = f"u{n % 40}", rng.permutation(60)[:6]
        time = 1_700_000_000_000 + n * HOUR
        rows += [(user, f"i{item}", time, "impression", f"r{n}", place) for place, item in enumerate(shown.tolist())]
        rows.append((user, f"i{shown.min()}", time + 1_000, "click", f"r{n}", int(np.argmin(shown))))
    names = ["user_id", "item_id", "event_time", "action", "request_id", "position"]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(tmp_path / "events.parquet")
    items = [{"item_id": f"i{n}", "title": f"thing {n}", "price": 1.0 + n} for n in range(59)]
    pl.DataFrame(items).write_parquet(tmp_path / "items.parquet")
    (tmp_path / "dataset.toml").write_text(f'positive = "{POSITIVE}"\n')
    return tmp_path


def test_each_order_is_measured_over_the_slates_with_a_like_after_the_split(folder: Path) -> None:
    corpus = open_corpus(str(folder))
    examination = Examination(fixed_curve(), np.zeros(6), np.zeros(6), 400)
    test = shown_test(corpus, 0.5, examination=examination)
    assert test is not None
    cut = len(corpus.events) // 2
    assert [slate.place for slate in test.slates] == sorted(slate.place for slate in test.slates)
    assert 150 <= len(test.slates) <= 200
    assert min(slate.place for slate in test.slates) >= cut
    figures = evaluate(corpus.items, corpus.events, PositiveRule(POSITIVE), EvaluationPlan(0.5, 5), shown=test).lists
    assert figures is not None
    assert len(figures) == len(test.slates)
    # the same by hand: requests to a worker that has the events before each slate
    world = SimulatedWorker(corpus.items)
    pipeline, at, reciprocal, shown, dropped = CandidatePipeline(world.items, clock=after_all), 0, [], [], 0
    for slate in test.slates:
        world.apply(list(corpus.events[at : slate.place]))
        at = slate.place
        record = world.record(slate.user_id)
        world.know(record)
        request = Request("r", slate.user_id, k=6, candidates=tuple(slate.item_ids), repeats=True)
        ranked = [item.item_id for item in pipeline.run([request], [record], [None])[0].items]
        assert slate.positions is not None
        in_order = [slate.item_ids[n] for n in np.argsort(slate.positions)]
        ranked += [name for name in in_order if name not in ranked]
        liked = slate.item_ids[int(np.argmax(slate.labels[:, 0]))]
        reciprocal.append(1 / (1 + ranked.index(liked)))
        shown.append(1 / (1 + in_order.index(liked)))
        known = {f"i{n}" for n in range(59)}
        dropped += sum(name not in known for name in slate.item_ids)
    assert figures.reciprocal["riffle"] == pytest.approx(reciprocal)
    assert figures.reciprocal["shown"] == pytest.approx(shown)
    assert figures.dropped == dropped
    assert figures.dropped > 0
    assert figures.liked_dropped == 0, "the catalogue lacks one item, which nobody likes most"
    told = figures.to_json(examination)
    assert set(told["mrr"]) == set(told["ndcg"]) == set(ORDERS)
    assert told["mrr"]["like_rate"][0] > told["mrr"]["shown"][0] + 0.1, "clicks follow the items, not the positions"
    assert told["mrr_unbiased"]["shown"] < told["mrr"]["shown"][0], "likes at the top weigh less"


def test_the_shown_order_is_predicted_by_the_probability_of_a_like_not_by_a_score_of_several_heads() -> None:
    heads = {"a": (0.1, 0.9), "b": (0.3, 0.1), "c": (0.2, 0.8)}
    explained = {name: {"heads": {"positive": like, "buy": buy}} for name, (like, buy) in heads.items()}
    items = [SlateItem(name, like + 2 * buy, (), explained[name]) for name, (like, buy) in heads.items()]
    answer = Slate("r", "u", tuple(items), "none", "default")
    labels, flat = np.zeros((3, 1), np.float32), Examination(np.zeros(100))
    slate = LoggedSlate(0, "u", list(heads), None, labels, np.ones(3, np.float32), 0, np.arange(3))
    order = ListRanker._as_shown(slate, answer, {name: n for n, name in enumerate(heads)}, flat)
    assert order.tolist() == [1, 2, 0]
    bare = replace(answer, items=tuple(replace(item, explanation=None) for item in items))
    assert ListRanker._as_shown(slate, bare, {name: n for n, name in enumerate(heads)}, flat).tolist() == [0, 2, 1]


def test_without_shown_slates_or_likes_after_the_split_there_is_nothing_to_re_rank(folder: Path) -> None:
    corpus = open_corpus(str(folder))
    assert shown_test(corpus, 1.0) is None
    assert shown_test(corpus, 0.999) is None
    (folder / "dataset.toml").write_text("positive = \"action == 'buy'\"\n")
    assert shown_test(open_corpus(str(folder)), 0.5) is None
    limited = shown_test(corpus, 0.5, 10)
    assert limited is not None
    assert len(limited.slates) == 10


def test_the_command_reports_it_and_a_folder_without_impressions_does_not(folder: Path) -> None:
    arguments = [str(folder), "--no-train", "--share", "0.5", "--queries", "20", "--json"]
    told = json.loads(CliRunner().invoke(evaluate_command, arguments, catch_exceptions=False).stdout)
    lists = told["shown_slates"]
    assert lists["slates"] == 20
    assert set(lists["mrr"]) == {"riffle", "shown", "like_rate", "popularity"}, "without a release no position bias is known"
    events = pl.read_parquet(folder / "events.parquet").filter(pl.col("action") == "click")
    events.write_parquet(folder / "events.parquet")
    told = json.loads(CliRunner().invoke(evaluate_command, arguments, catch_exceptions=False).stdout)
    assert "shown_slates" not in told


def test_items_without_a_price_get_the_median_of_those_in_their_events(folder: Path) -> None:
    events = pl.read_parquet(folder / "events.parquet")
    price = (pl.int_range(pl.len()) % 7 + 10).cast(pl.Float64)
    events = events.with_columns(pl.when(pl.col("item_id") != "i3").then(price).alias("price"))
    pl.read_parquet(folder / "items.parquet").with_columns(
        pl.when(pl.col("item_id") == "i5").then(pl.col("price")).alias("price")
    ).write_parquet(folder / "items.parquet")
    median = dict(events.group_by("item_id").agg(pl.col("price").median()).iter_rows())
    for kind in ("parquet", "csv", "jsonl"):
        (folder / "events.parquet").unlink(missing_ok=True)
        written = folder / f"events.{kind}"
        if kind == "parquet":
            events.write_parquet(written)
        elif kind == "csv":
            events.write_csv(written)
        else:
            events.write_ndjson(written)
        items = {item.item_id: item.price for item in open_corpus(str(folder)).items}
        (folder / f"events.{kind}").unlink()
        assert items["i5"] == 6.0, "its own"
        assert items["i3"] is None
        assert {name: price for name, price in items.items() if name not in ("i3", "i5")} == pytest.approx(
            {f"i{n}": median[f"i{n}"] for n in range(59) if n not in (3, 5)}
        )
