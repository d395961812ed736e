"""Slates from impression events: complete, labelled as by a plain recomputation, with the features of serving at that time."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from learning_corpus import POSITIVE, SMALL, corpus

from models.features.compute import FEATURES
from models.pipeline.pipeline import CandidatePipeline
from models.release.serving import ServingModel
from models.rules import SHOWN, PositiveRule
from schemas.errors import BadDataset
from schemas.records import Interaction, Item, Request
from training.data.corpus import Corpus, open_corpus
from training.data.events import EventFrame
from training.data.slates.logged import LoggedSlate
from training.data.slates.shown import all_slates, shown_slates
from training.data.table import EventTable, vocabulary_of
from training.evaluation.evaluate import evaluate
from training.learn import learn
from training.ranking import choice
from training.release.learned import Learned
from training.replay import replay as replay_module
from training.replay.replay import replay
from training.replay.world import SimulatedWorker

RULE = PositiveRule(POSITIVE)
HEADS = (("positive", 1.0), ("buy", 0.5))
WINDOWS = {"positive": 12, "buy": 25}
STEPS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 3),
        st.sampled_from([SHOWN, SHOWN, "view", "like", "buy"]),
        st.integers(0, 6),
        st.none() | st.integers(0, 4),
        st.none() | st.integers(0, 3),
    ),
    max_size=40,
)


def stream(steps: list[tuple[Any, ...]], rest: int = 1_000) -> list[Interaction]:
    """Each event draws its advance of event time; the last one is `rest` later, and closes the windows until then."""
    events, time = [], 0
    for n, (user, item, action, gap, request, position) in enumerate(steps):
        time += gap
        asked = None if request is None else f"r{request}"
        events.append(Interaction(f"e{n}", f"u{user}", f"i{item}", time, action, None, None, asked, position))
    return [*events, Interaction("end", "nobody", "i0", time + rest, "view")]


def expected(
    events: list[Interaction], after_ms: int, but: set[tuple[str, str]]
) -> dict[tuple[str, str], dict[str, tuple[bool, bool]]]:
    """Recompute the labels of each item, by the slate's user and id."""
    told = {(e.user_id, e.request_id) for e in events if e.action == SHOWN and e.request_id is not None}
    slates: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(dict)
    first: dict[tuple[str, str], int] = {}
    for n, e in enumerate(events):
        if e.action == SHOWN or (e.user_id, e.request_id) in told:
            key = e.user_id, f"t{e.event_time}" if e.request_id is None else f"r{e.request_id}"
            slates[key].setdefault(e.item_id, [False, False])
            first.setdefault(key, n)
    for n, e in enumerate(events):
        if e.action == SHOWN:
            continue
        mine = [key for key, items in slates.items() if key[0] == e.user_id and e.item_id in items and first[key] <= n]
        mine = [key for key in mine if e.event_time - events[first[key]].event_time <= 25]
        if e.request_id is not None:
            mine = [key for key in mine if key[1] == f"r{e.request_id}"]
        if mine:
            newest = max(mine, key=lambda key: first[key])
            age, came = e.event_time - events[first[newest]].event_time, slates[newest][e.item_id]
            came[0] |= e.action == "like" and age <= 12
            came[1] |= e.action == "buy" and age <= 25
    until = [e.event_time for e in events if e.action != SHOWN][-1] - 25
    taken = {
        key: items
        for key, items in slates.items()
        if len(items) > 1
        and after_ms < events[first[key]].event_time <= (until + 25 if any(a for a, _ in items.values()) else until)
        and (key[0], key[1][1:]) not in but
    }
    return {key: {item: (a, b) for item, (a, b) in items.items()} for key, items in taken.items()}


def labels(slates: list[LoggedSlate]) -> list[Any]:
    return sorted((s.user_id, sorted(zip(s.item_ids, s.labels.astype(bool).tolist(), strict=True))) for s in slates)


LIKED_AFTER_ANOTHER = [(0, 1, SHOWN, 1, 1, 0), (0, 2, SHOWN, 0, 1, 1)]


@settings(max_examples=300, deadline=None)
@given(
    STEPS,
    st.sampled_from([0, 10, 1_000]),
    st.integers(0, 30),
    st.sets(st.tuples(st.integers(0, 2), st.integers(0, 4)), max_size=3),
)
@example(
    [*LIKED_AFTER_ANOTHER, (0, 1, SHOWN, 1, 0, 0), (0, 2, SHOWN, 0, 0, 1), (0, 1, "like", 1, None, None)], 1_000, 0, {(0, 0)}
)
@example([*LIKED_AFTER_ANOTHER, (0, 1, SHOWN, 1, 0, 0), (0, 2, SHOWN, 0, 0, 1), (0, 1, "like", 1, None, None)], 1_000, 0, set())
@example([*LIKED_AFTER_ANOTHER, (0, 1, SHOWN, 1, 2, 0), (0, 1, "like", 1, None, None)], 1_000, 0, set())
@example([*LIKED_AFTER_ANOTHER, (0, 1, SHOWN, 20, 2, 0), (0, 1, "like", 1, None, None)], 10, 0, set())
def test_labels_equal_a_plain_recomputation(
    steps: list[tuple[Any, ...]], rest: int, after_ms: int, but: set[tuple[int, int]]
) -> None:
    events = stream(steps, rest)
    history, shown = EventFrame.of(events).split(SHOWN)
    apart = {(f"u{user}", f"r{request}") for user, request in but}
    wanted = expected(events, after_ms, apart)
    found = shown_slates(shown, history, HEADS, RULE, WINDOWS, after_ms, 1_000, apart)
    assert labels(found) == sorted(
        (user, sorted((item, list(came)) for item, came in items.items())) for (user, _), items in wanted.items()
    )
    for slate in found:
        assert sum(e.event_time < slate.shown_ms for e in history) <= slate.place
        assert slate.place <= sum(e.event_time <= slate.shown_ms for e in history)
        assert slate.features is None
    assert [(s.shown_ms, s.place) for s in found] == sorted((s.shown_ms, s.place) for s in found)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.integers(1, 4))
def test_of_many_slates_the_newest_are_taken_first_those_with_a_like(steps: list[tuple[Any, ...]], most: int) -> None:
    history, shown = EventFrame.of(stream(steps)).split(SHOWN)
    every = shown_slates(shown, history, HEADS, RULE, WINDOWS, 0, 1_000)
    some = shown_slates(shown, history, HEADS, RULE, WINDOWS, 0, most)
    assert len(some) == min(most, len(every))
    apart = {(s.user_id, s.item_ids[0], s.shown_ms) for s in some}
    assert apart <= {(s.user_id, s.item_ids[0], s.shown_ms) for s in every}
    likes = [bool(s.labels[:, 0].any()) for s in some]
    if sum(bool(s.labels[:, 0].any()) for s in every) >= most:
        assert sum(likes) >= int(most * 0.75)


def test_what_was_shown_lower_and_not_acted_on_weighs_less_and_requests_known_otherwise_are_left_out() -> None:
    events = [Interaction(f"e{n}", "u", f"i{n}", 10, SHOWN, None, None, "r", n) for n in range(4)]
    events += [Interaction("like", "u", "i2", 11, "like", None, None, "r", 2), Interaction("end", "u", "i0", 999, "view")]
    history, shown = EventFrame.of(events).split(SHOWN)
    (slate,) = shown_slates(shown, history, HEADS, RULE, WINDOWS, 0, 9)
    assert slate.weight == pytest.approx([1, 2**-0.5, 1, 4**-0.5])
    assert shown_slates(shown, history, HEADS, RULE, WINDOWS, 0, 9, [("u", "r")]) == []


def test_slates_whose_windows_are_open_teach_what_was_chosen_but_not_how_often() -> None:
    events = [
        Interaction(f"e{n}-{at}", "u", f"i{at}", 100 * n, SHOWN, None, None, f"r{n}", at)
        for n in range(1, 3)
        for at in range(2)
    ]
    events += [Interaction(f"l{n}", "u", "i1", 100 * n + 1, "like", None, None, f"r{n}") for n in range(1, 3)]
    history, shown = EventFrame.of([*events, Interaction("end", "u", "i0", 215, "view")]).split(SHOWN)
    over, still = shown_slates(shown, history, HEADS, RULE, WINDOWS, 0, 9)
    assert over.weight == pytest.approx([1, 1])
    assert still.weight.tolist() == [0, 0]
    assert still.labels[:, 0].tolist() == [0, 1]
    rows = all_slates(shown, history, RULE, {"positive": 100}, 9)
    assert rows["closed"].to_list() == [True, True, False, False]


def test_position_bias_is_measured_without_requests_known_otherwise() -> None:
    events = [
        Interaction(f"e{n}-{at}", "u", f"i{at}", 10 * n, SHOWN, None, None, f"r{n}", at) for n in range(1, 4) for at in range(2)
    ]
    history, shown = EventFrame.of([*events, Interaction("end", "u", "i0", 10**9, "view")]).split(SHOWN)
    assert len(all_slates(shown, history, RULE, WINDOWS, 9)) == 6
    left = all_slates(shown, history, RULE, WINDOWS, 9, {("u", "r2")})
    assert left["slate"].to_list() == [0, 0, 1, 1]
    assert len(all_slates(shown, history, RULE, WINDOWS, 1, {("u", "r3")})) == 2, "the newest of the others"


def with_slates(seed: int = 0, per_slate: int = 6) -> tuple[list[Item], list[Interaction]]:
    """The corpus; before each event its item is shown to the user among others. Items of one category have no interactions."""
    items, events = corpus(seed)
    dull = [Item(f"dull{n}", f"grey thing {n}", "made of grey glass", ("grey",)) for n in range(10)]
    rng, told = np.random.default_rng(seed), []
    for n, event in enumerate(events):
        others = rng.choice(len(dull), per_slate - 1, replace=False)
        names = [f"dull{other}" for other in others]
        names.insert(int(rng.integers(per_slate)), event.item_id)
        for place, name in enumerate(names):
            shown = Interaction(
                f"s{n}-{place}", event.user_id, name, event.event_time - 1_000, SHOWN, None, None, f"r{n}", place
            )
            told.append(shown)
        told.append(replace(event, request_id=f"r{n}"))
    return [*items, *dull], told


def test_features_are_those_that_serving_has_as_the_slate_is_shown(learned: Learned) -> None:
    items, told = with_slates()
    history, shown = EventFrame.of(told).split(SHOWN)
    vocabulary = vocabulary_of(history, POSITIVE)
    heads = tuple((head.action, head.weight) for head in learned.manifest.heads)
    table, model = EventTable.of(history, items, vocabulary, heads), ServingModel(learned.release(), 1)
    slates = shown_slates(shown, history, heads, RULE, {}, history[600].event_time, 20)
    assert len(slates) == 20
    lists = replay(SimulatedWorker(items), model, history, table, 600, 0, 0, None, slates).shown
    found = lists.examples
    world = SimulatedWorker(items)
    world.slot.swap(model)
    pipeline, at = CandidatePipeline(world.items, slot=world.slot), 0
    for n, slate in enumerate(slates):
        world.apply(list(history[at : slate.place]))
        at = slate.place
        record = world.record(slate.user_id)
        world.know(record)
        requested = Request("r", slate.user_id, k=6, candidates=tuple(slate.item_ids), repeats=True)
        (alone,) = pipeline.run([requested], [record], [None])
        of_item = {item.item_id: np.asarray(item.features) for item in alone.items}
        for place, item_id in enumerate(slate.item_ids):
            assert found.features[n, place] == pytest.approx(of_item[item_id], abs=1e-5)
        assert set(of_item) == set(slate.item_ids)
        assert lists.positions[n].tolist() == list(range(6))
        assert lists.items[n].tolist() == world.items.rows_of(slate.item_ids).tolist()
        assert found.valid[n].sum() == len(slate.item_ids) == 6
        assert np.array_equal(found.labels[n, :6], slate.labels)


def test_of_a_long_slate_items_with_an_action_are_kept_before_others() -> None:
    labels = np.zeros((150, 2), np.float32)
    labels[120, 0] = labels[140, 1] = 1
    slate = LoggedSlate(0, "u", [f"i{n}" for n in range(150)], None, labels, np.ones(150, np.float32))
    rows = np.arange(150, dtype=np.int32)
    rows[[3, 130]] = -1
    kept = replay_module._kept(slate, rows).tolist()
    assert kept == [n for n in range(99) if n != 3] + [120, 140], "in the order of the slate, without unknown ones"


def test_a_person_who_has_met_everything_has_features_of_their_own(learned: Learned) -> None:
    """No candidate is left then. The shown items are still ranked, and never with another user's features."""
    items, events = corpus()
    everything = [Interaction(f"a{n}", "u0", item.item_id, events[-1].event_time + n, "view") for n, item in enumerate(items)]
    time_ms = everything[-1].event_time + 2
    told = [
        Interaction(f"s{user}{n}", f"u{user}", f"i{n}", time_ms - user, SHOWN, None, None, f"r{user}", n)
        for user in (1, 0)
        for n in range(4)
    ]
    end = Interaction("end", "u2", "i0", time_ms + 10**9, "view")
    history, shown = EventFrame.of([*events, *everything, *told, end]).split(SHOWN)
    heads = tuple((head.action, head.weight) for head in learned.manifest.heads)
    slates = shown_slates(shown, history, heads, RULE, {}, 0, 9)
    table, model = EventTable.of(history, items, vocabulary_of(history, POSITIVE), heads), ServingModel(learned.release(), 1)
    replayed = replay(SimulatedWorker(items), model, history, table, 0, 0, 0, None, slates)
    assert [slate.user_id for slate in slates] == ["u1", "u0"]
    assert (replayed.logged, len(replayed.shown)) == (0, 2)
    counted = replayed.shown.examples.features[:, 0, FEATURES.index("user_events")]
    world = SimulatedWorker(items)
    world.apply(list(history[:-1]))
    records = [world.record(user) for user in ("u1", "u0")]
    assert counted == pytest.approx([np.log1p(sum(record.counts.values())) for record in records if record], abs=1e-5)


def with_left_ones() -> tuple[list[Item], list[Interaction]]:
    """Expensive and cheap items are liked equally often, but in slates expensive ones never."""
    rng = np.random.default_rng(0)
    items = [Item(f"i{n}", f"thing {n}", categories=(f"c{n % 3}",), price=100.0 if n // 3 % 2 else 1.0) for n in range(240)]
    dear = np.asarray([item.price == 100 for item in items])
    events, unmet = list[Interaction](), {user: np.ones(240, np.bool_) for user in range(30)}
    for n in range(600):
        user, time_ms = int(rng.integers(30)), 1_000_000_000 + 3_600_000 * n
        own = unmet[user] & (np.arange(240) % 3 == user % 3)
        cheap, costly = (rng.permutation(np.flatnonzero(own & kind))[:3].tolist() for kind in (~dear, dear))
        liked, asked = (cheap[0], f"r{n}") if n % 2 else (costly[0], "elsewhere")
        shown = rng.permutation([*cheap, *costly]).tolist() if n % 2 else []
        events += [
            Interaction(f"s{n}-{at}", f"u{user}", f"i{item}", time_ms - 1_000, SHOWN, None, None, f"r{n}", at)
            for at, item in enumerate(shown)
        ]
        events.append(Interaction(f"e{n}", f"u{user}", f"i{liked}", time_ms, "like", None, None, asked))
        unmet[user][liked] = False
    return items, events


LEARNS = replace(SMALL, queries=240, ranker=replace(SMALL.ranker, epochs=12))


def learned_from_left_ones(folder: Path, *, shown: bool) -> Learned:
    """A release from the history of `with_left_ones`, and from its slates or not."""
    items, told = with_left_ones()
    history, slates = EventFrame.of(told).split(SHOWN)
    return learn(Corpus("shop", items, history, POSITIVE, shown=slates if shown else None), folder, LEARNS)


@pytest.fixture(scope="module")
def blind(vectors: Path) -> Learned:
    """A release that has seen no slates."""
    return learned_from_left_ones(vectors, shown=False)


@pytest.mark.slow
def test_the_ranker_learns_from_what_was_shown_and_left(vectors: Path, monkeypatch: pytest.MonkeyPatch, blind: Learned) -> None:
    monkeypatch.setattr(choice, "helps", lambda *_: True)
    items, told = with_left_ones()
    history, _ = EventFrame.of(told).split(SHOWN)
    names, people = tuple(item.item_id for item in items), [f"u{n}" for n in range(30)]
    share = {}
    for kind, made in (("seen", learned_from_left_ones(vectors, shown=True)), ("blind", blind)):
        assert made.measured["logged_slates"] == (0 if made is blind else 90), "also open ones, which have likes"
        world = SimulatedWorker(items)
        world.slot.swap(ServingModel(made.release(), 1))
        world.apply(list(history))
        pipeline = CandidatePipeline(world.items, slot=world.slot)
        requests = [Request("r", user, k=240, candidates=names) for user in people]
        slates = pipeline.run(requests, [world.record(user) for user in people], [None] * len(people))
        scores: dict[bool, list[float]] = {True: [], False: []}
        for slate in slates:
            for item in slate.items:
                number = int(item.item_id[1:])
                if number % 3 == int(slate.user_id[1:]) % 3:
                    scores[items[number].price == 100].append(item.score)
        share[kind] = float(np.mean(scores[True]) / np.mean(scores[False]))
    assert share["blind"] > 0.7
    assert share["seen"] < 0.7 * share["blind"]


@pytest.mark.slow
def test_slates_by_which_likes_are_put_lower_in_history_are_left(
    vectors: Path, monkeypatch: pytest.MonkeyPatch, blind: Learned
) -> None:
    monkeypatch.setattr(choice, "helps", lambda *_: False)
    left = learned_from_left_ones(vectors, shown=True)
    assert left.measured["logged_slates"] == 0
    assert left.graphs == blind.graphs
    assert left.measured["reliability"] == blind.measured["reliability"]


def test_a_folder_with_impressions_is_asked_about_what_was_clicked_not_about_what_was_seen(tmp_path: Path) -> None:
    """An impression is not an interaction: a slate may hold the item, and a later click on it is a query."""
    _, told = with_slates()
    rows = [{name: getattr(event, name) for name in Interaction.__dataclass_fields__} for event in told]
    frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(pl.col("event_time") + 10**12)
    items = [{"item_id": item.item_id, "title": item.title} for item in with_slates()[0]]
    for folder, action, rule in (("named", SHOWN, ""), ("ruled", "exposure", "shown = \"action == 'exposure'\"\n")):
        (tmp_path / folder).mkdir()
        pl.DataFrame(items).write_csv(tmp_path / folder / "items.csv")
        frame.with_columns(pl.col("action").replace(SHOWN, action)).write_csv(tmp_path / folder / "events.csv")
        (tmp_path / folder / "dataset.toml").write_text(f'positive = "{POSITIVE}"\n{rule}')
        found = open_corpus(str(tmp_path / folder))
        assert found.shown is not None
        assert (len(found.events), len(found.shown)) == (900, 5_400)
        figures = evaluate(found.items, found.events, RULE)
        assert figures.ranks
        assert sum(asked.interacted for asked in figures.asked) < len(figures.asked) / 4


def test_a_folder_of_which_nothing_can_be_used_is_refused_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    items = "item_id,title\na,one\nb,two\n"
    header, row = "user_id,item_id,event_time,action,position\n", "u,a,1700000000000,{},{}\n"
    folders = {
        "shown": row.format(SHOWN, 0),
        "bad": row.format("view", -1),
        "mixed": row.format("view", 0) + row.format("view", 10**7),
    }
    for name, events in folders.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "items.csv").write_text(items)
        (tmp_path / name / "events.csv").write_text(header + events)
        (tmp_path / name / "dataset.toml").write_text('positve = "True"\n')
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "items.csv").write_text(items)
    for name, said in (("shown", "no event that is not an impression"), ("bad", "position"), ("none", "has no events")):
        with pytest.raises(BadDataset, match=said):
            open_corpus(str(tmp_path / name))
    found = open_corpus(str(tmp_path / "mixed"))
    assert (len(found.events), found.bad_rows) == (1, 1)
    assert "events.csv line 3" in found.notes[0]
    assert "positve" in found.notes[1]
