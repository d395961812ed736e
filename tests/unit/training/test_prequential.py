"""Laws of the prequential protocol."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from grown import assert_columns
from hypothesis import given
from hypothesis import strategies as st

from models.rules import PositiveRule
from models.state.rows import UserRecord
from schemas.errors import BadDataset
from schemas.records import Interaction, Item
from training.cli.evaluate import evaluate_command
from training.evaluation.evaluate import EvaluationPlan, Figures, asked_of, evaluate
from training.replay.probe import BEYOND, Probed, Prober
from training.replay.world import SimulatedWorker

ranks = st.lists(st.integers(BEYOND, 299), max_size=60)


def drawn(seed: int, n: int = 240) -> tuple[list[Item], list[Interaction]]:
    rng = np.random.default_rng(seed)
    items = [Item(f"i{x}", title=f"word{x % 7} thing{x}", categories=(f"c{x % 3}",)) for x in range(30)]
    events = [
        Interaction(
            event_id=f"e{x}",
            user_id=f"u{rng.integers(12)}",
            item_id=f"i{rng.integers(30)}",
            action="rate",
            event_time=1_000_000 + 60_000 * x,
            value=float(rng.integers(1, 6)),
        )
        for x in range(n)
    ]
    return items, events


def liked(action: str, value: float | None) -> bool:
    return action == "rate" and value is not None and value >= 4


@given(ranks)
def test_metrics_equal_a_plain_recomputation(found: list[int]) -> None:
    got = Figures(ranks=found).to_json()
    if not found:
        assert {got[name] for name in ("ndcg@10", "hr@10", "recall@50", "mrr")} == {None}
        return
    n = len(found)
    assert got["ndcg@10"] == pytest.approx(sum(1 / math.log2(r + 2) for r in found if 0 <= r < 10) / n, abs=1e-4)
    assert got["hr@10"] == pytest.approx(sum(0 <= r < 10 for r in found) / n, abs=1e-4)
    assert got["recall@50"] == pytest.approx(sum(0 <= r < 50 for r in found) / n, abs=1e-4)
    assert got["mrr"] == pytest.approx(sum(1 / (r + 1) for r in found if r >= 0) / n, abs=1e-4)


def test_an_answer_never_depends_on_the_event_asked_about_or_later_ones() -> None:
    """Every query's rank equals that in a world with only the earlier events."""
    items, events = drawn(1)
    cut, got = 192, evaluate(*drawn(1), liked).ranks
    expected = []
    for n in range(cut, len(events)):
        if liked(events[n].action, events[n].value):
            world = SimulatedWorker(items)
            for event in events[:n]:
                world.apply([event])
            user, item = events[n].user_id, events[n].item_id
            world.know(world.record(user))
            expected.append(Prober(world.items).probe(user, world.record(user), item).rank)
    assert got == expected


@pytest.mark.parametrize("most", [1, 7, None])
def test_events_between_queries_may_be_applied_together(most: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Users and slates equal those of a world that applies event by event, also where items are published meanwhile."""
    items, events = drawn(5)
    items = [replace(item, published_at=events[190 + 2 * n].event_time) if n < 25 else item for n, item in enumerate(items)]
    probe, users = Prober.probe, []

    def probed(prober: Prober, user_id: str, user: UserRecord | None, item_id: str) -> Probed:
        users.append(user and user.encode())
        return probe(prober, user_id, user, item_id)

    with monkeypatch.context() as watched:
        watched.setattr(Prober, "probe", probed)
        found = evaluate(items, events, liked, EvaluationPlan(queries=most)).asked
    asked = asked_of(events, liked, 0.8, most)
    assert len(found) == len(asked) > 0
    world, answers = SimulatedWorker(items), iter(found)
    prober = Prober(world.items)
    world.publish(events[191].event_time)
    world.apply(events[:192])
    for n, event in enumerate(events[192:], 192):
        world.publish(event.event_time)
        if n in asked:
            world.know(world.record(event.user_id))
            user, answer = world.record(event.user_id), next(answers)
            assert users.pop(0) == (user and user.encode())
            expected = prober.probe(event.user_id, user, event.item_id)
            for name in ("rank", "stage", "sources", "candidate_rank", "candidates"):
                assert getattr(answer.probed, name) == getattr(expected, name), name
            assert answer.probed.slate.tolist() == expected.slate.tolist()
            row = world.items.row_of(event.item_id)
            assert answer.cold == (row < 0 or not world.items.events[row].sum())
        world.apply([event])


def test_a_worlds_columns_are_its_records() -> None:
    items, events = drawn(1)
    world = SimulatedWorker(items)
    world.apply(events)
    wanted = [*sorted({event.user_id for event in events}), "nobody"]
    assert_columns(world.columns(wanted), [world.record(user) for user in wanted])


def test_later_events_change_no_earlier_rank() -> None:
    items, events = drawn(2)
    rest = [replace(e, user_id="u0", item_id="i0", value=5.0) for e in events[220:]]
    before = sum(liked(e.action, e.value) for e in events[192:220])
    whole, altered = evaluate(items, events, liked), evaluate(items, events[:220] + rest, liked)
    assert whole.ranks[:before] == altered.ranks[:before]


def test_every_query_ends_in_one_stage_and_seen_items_are_never_ranked() -> None:
    items, events = drawn(3)
    got = evaluate(items, events, liked)
    assert got.stages.total() == len(got.ranks) == sum(liked(e.action, e.value) for e in events[192:])
    seen = {(e.user_id, e.item_id) for e in events[:192]}
    rank = iter(got.ranks)
    for event in events[192:]:
        if liked(event.action, event.value):
            found = next(rank)
            assert found == BEYOND or (event.user_id, event.item_id) not in seen
        seen.add((event.user_id, event.item_id))


def test_with_repeats_seen_items_are_ranked() -> None:
    items, events = drawn(3)
    without, found = evaluate(items, events, liked), evaluate(items, events, liked, EvaluationPlan(repeats=True))
    assert [(q.user_id, q.item_id, q.interacted) for q in without.asked] == [
        (q.user_id, q.item_id, q.interacted) for q in found.asked
    ]
    assert any(asked.interacted for asked in found.asked)
    for before, now in zip(without.asked, found.asked, strict=True):
        if now.interacted:
            assert before.probed.rank == BEYOND
            assert now.probed.rank != BEYOND
            assert "history" in now.probed.sources


def test_an_item_is_in_no_slate_before_it_is_published() -> None:
    items, events = drawn(4)
    late = Item("late", title="word1 late", published_at=events[200].event_time)
    world = SimulatedWorker([*items, late])
    world.apply(events[:192])
    world.publish(events[199].event_time)
    probed = Prober(world.items).probe("nobody", None, "late")
    assert (probed.rank, probed.stage, probed.sources, probed.candidate_rank) == (BEYOND, "not_retrieved", [], BEYOND)
    world.publish(events[200].event_time)
    assert Prober(world.items).probe("nobody", None, "late").stage == "ranked"


def test_without_queries_figures_are_absent() -> None:
    found = evaluate([], [], liked).to_json()
    assert {name: found[name] for name in ("ndcg@10", "hr@10", "recall@50", "mrr", "queries")} == {
        "ndcg@10": None,
        "hr@10": None,
        "recall@50": None,
        "mrr": None,
        "queries": 0,
    }


def test_who_views_before_buying_is_asked_about_at_the_view() -> None:
    """At the purchase the item is seen, so that no slate holds it; at first interactions every query can be answered."""
    rng = np.random.default_rng(3)
    items, events, at = [Item(f"i{n}", categories=(f"c{n % 3}",)) for n in range(30)], [], 1_000_000
    for n in range(300):
        user, item, at = f"u{rng.integers(20)}", f"i{rng.integers(30)}", at + 60_000
        events.append(Interaction(f"v{n}", user, item, at, "view"))
        if n % 2:
            events.append(Interaction(f"b{n}", user, item, at + 30_000, "buy"))
    bought = lambda action, value: action == "buy"
    plain: dict[str, Any] = evaluate(items, events, bought).to_json()
    assert plain["queries"] == plain["queries_on_met_items"] > 0
    assert plain["hr@10"] == 0.0
    asked = asked_of(events, bought, 0.8, first=True)
    met = {(event.user_id, event.item_id) for event in events[: int(len(events) * 0.8)]}
    for n in range(int(len(events) * 0.8), len(events)):
        pair = (events[n].user_id, events[n].item_id)
        follows = any((e.user_id, e.item_id, e.action) == (*pair, "buy") for e in events[n:])
        assert (n in asked) == (pair not in met and follows)
        met.add(pair)
    first: dict[str, Any] = evaluate(items, events, bought, EvaluationPlan(first=True)).to_json()
    assert first["queries"] == len(asked) > 0
    assert first["queries_on_met_items"] == 0
    assert first["hr@10"] > 0.0


def test_the_command_says_that_what_was_viewed_is_asked_for_with_first(tmp_path: Path) -> None:
    items = [{"item_id": f"i{n}", "title": f"lamp {n}"} for n in range(20)]
    rng, events = np.random.default_rng(5), []
    for n in range(200):
        seen, at = {"user_id": f"u{rng.integers(20)}", "item_id": f"i{rng.integers(20)}"}, 1_700_000_000_000 + 60_000 * n
        events += [{**seen, "event_time": at, "action": "view"}, {**seen, "event_time": at + 30_000, "action": "buy"}]
    for name, rows in (("items", items), ("events", events)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [str(tmp_path), "--no-train", "--positive", "action == 'buy'", "--share", "0.5", "--json"]
    plain = CliRunner().invoke(evaluate_command, asked)
    assert plain.exit_code == 0, plain.output
    assert "use --first" in plain.stderr
    assert json.loads(plain.stdout)["hr@10"] == 0.0
    repeats = CliRunner().invoke(evaluate_command, [*asked, "--repeats"])
    assert "use --first" not in repeats.stderr
    assert json.loads(repeats.stdout)["repeats"] is True
    assert json.loads(repeats.stdout)["hr@10"] > 0.0
    both = CliRunner().invoke(evaluate_command, [*asked, "--first", "--repeats"])
    assert "leave out --first or --repeats" in str(both.exception)
    first = CliRunner().invoke(evaluate_command, [*asked, "--first"])
    assert first.exit_code == 0, first.output
    assert "use --first" not in first.stderr
    made = json.loads(first.stdout)
    assert made["queries_on_met_items"] == 0
    assert made["hr@10"] > 0.0


def test_where_everybody_meets_an_item_once_both_ways_ask_the_same() -> None:
    _, events = drawn(1)
    once = list({(event.user_id, event.item_id): event for event in reversed(events)}.values())[::-1]
    once.sort(key=lambda event: event.event_time)
    assert asked_of(once, liked, 0.8) == asked_of(once, liked, 0.8, first=True)


@given(st.sampled_from(["rate", "view"]), st.floats(allow_nan=False, width=32))
@pytest.mark.parametrize(
    "text", ["True", "action == 'rate' and value >= 4.0", "not (value < 3)", "action != 'view' or 1 < value <= 2"]
)
def test_a_rule_agrees_with_python(text: str, action: str, value: float) -> None:
    assert PositiveRule(text)(action, value) == bool(eval(text, {}, {"action": action, "value": value}))


@pytest.mark.parametrize("text", ["__import__('os')", "value.real > 1", "user == 'x'", "value >", "[x for x in y]", "2**9"])
def test_a_rule_runs_no_code(text: str) -> None:
    with pytest.raises(BadDataset):
        PositiveRule(text)


def test_an_absent_value_is_not_positive() -> None:
    assert not PositiveRule("value >= 4.0")("rate", None)


def test_a_rule_compares_in_the_precision_values_are_kept_in() -> None:
    rule = PositiveRule("value >= 0.7")
    assert rule("rate", 0.7)
    assert rule("rate", float(np.float32(0.7)))
    assert not rule("rate", 0.69)
