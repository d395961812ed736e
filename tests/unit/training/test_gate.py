"""A release passes the gate if all conditions hold; each failed condition is reported with its figure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from learning_corpus import POSITIVE, corpus
from ranked_figures import figures

from models.release.release import Release
from models.rules import PositiveRule
from schemas.errors import BadDataset, ConfigError
from schemas.records import Interaction, Request, Slate, SlateItem
from training.cli.train import train_command
from training.evaluation.bounds import HALF, STANDARD, Bounds
from training.evaluation.evaluate import asked_of
from training.evaluation.holdout import gate_share, held_out, newer_held_out, unseen_share
from training.release import parity
from training.release.gate import judge
from training.release.learned import Learned
from training.release.parity import Modules, Parity, in_parity
from training.replay.world import SimulatedWorker

HELD = Parity(worst=2e-7, differing=0, tied=1, swapped=3, requests=1_000, rank_p99_ms=4.0, candidates=300)


def test_each_refusal_says_why_and_by_how_much() -> None:
    rng = np.random.default_rng(0)
    weak, strong = figures(rng.integers(0, 60, 400).tolist(), 40), figures(rng.integers(0, 15, 400).tolist(), 40)
    passed = judge(strong, weak, 1e-7, HELD, 20.0)
    assert passed.passed
    assert passed.to_json()["parity"]["requests"] == 1_000
    for change, word in (
        ({"worst": 3e-4}, "3.0e-04"),
        ({"differing": 2}, "2 of 1000 requests"),
        ({"rank_p99_ms": 181.25}, "181.2 ms"),
    ):
        verdict = judge(strong, weak, 1e-7, replace(HELD, **change), 20.0)
        assert not verdict.passed
        assert [word in reason for reason in verdict.reasons] == [True], verdict.reasons
    assert "5,000.0 MB" in judge(strong, weak, 0.0, HELD, 5_000.0).reasons[0]
    everything = judge(weak, weak, 1.0, replace(HELD, differing=1, rank_p99_ms=1e3), 1e6)
    assert len(everything.reasons) == 5
    assert judge(strong, weak, 1e-3, replace(HELD, worst=1e-3, differing=9), 20.0, HALF).passed
    assert not judge(strong, weak, float("nan"), HELD, 20.0).passed, "what was not measured is not fine"


def test_many_queries_of_few_people_are_not_many_proofs() -> None:
    """One user with a hundred better answers among ten unchanged users proves little."""
    worse = [30] * 600
    better = [0 if n % 10 == 0 else 30 for n in range(600)]
    one_by_one = judge(figures(better), figures(worse), 0.0)
    by_person = judge(figures(better, 10), figures(worse, 10), 0.0, HELD, bounds=replace(STANDARD, level=0.95, people=10))
    assert one_by_one.difference_low > by_person.difference_low
    assert one_by_one.passed
    assert not by_person.passed


def test_a_handful_of_people_is_not_judged_by_and_what_was_not_asked_is_not_passed() -> None:
    """Of intervals over 5 users 13 in 100 lie above 0 by chance, instead of 5."""
    better, worse = figures([0] * 300, 29), figures([30] * 300, 29)
    assert judge(better, worse, 0.0, HELD).reasons == ["only 29 users to judge by, 30 are needed"]
    assert judge(figures([0] * 300, 30), figures([30] * 300, 30), 0.0, HELD).passed
    (reason,) = judge(figures([0] * 300, 30), figures([30] * 300, 30), 0.0, None).reasons
    assert "neither parity on requests nor latency" in reason


def test_a_verdict_for_the_manifest_holds_no_timing() -> None:
    one, other = (
        judge(figures([0] * 300, 30), figures([30] * 300, 30), 0.0, replace(HELD, rank_p99_ms=ms)) for ms in (3.1, 3.2)
    )
    assert one.untimed() == other.untimed()
    assert one.to_json() != other.to_json()
    assert one.untimed()["parity"]["requests"] == HELD.requests


def asked_world(learned: Learned) -> tuple[SimulatedWorker, Release, list[str]]:
    items, events = corpus()
    world = SimulatedWorker(items)
    world.apply(events[:600])
    return world, learned.release(), sorted({event.user_id for event in events[:600]})


def test_an_exported_release_answers_as_torch_does(learned: Learned) -> None:
    world, release, people = asked_world(learned)
    assert learned.modules is not None
    found = in_parity(world, release, learned.modules, people, 80)
    assert found.requests == 80
    assert found.candidates > 10
    assert found.worst <= 1e-4
    assert found.differing == 0
    assert found.rank_p99_ms > 0


def test_a_release_whose_graphs_are_of_other_weights_is_found_out(learned: Learned) -> None:
    world, release, people = asked_world(learned)
    assert learned.modules is not None
    ranker = learned.modules.ranker
    kept = {name: value.clone() for name, value in ranker.state_dict().items()}
    try:
        with torch.no_grad():
            for value in ranker.parameters():
                value.add_(0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1)))
        found = in_parity(world, release, Modules(learned.modules.user, learned.modules.item, ranker), people, 30)
    finally:
        ranker.load_state_dict(kept)
    assert found.worst > 1e-4
    assert found.differing > 0


def slate(*items: tuple[str, float]) -> Slate:
    return Slate("r", "u", tuple(SlateItem(item_id, score, ()) for item_id, score in items), "one", "a")


FIRST = slate(("a", 0.5), ("d", 0.2)), {0: 0.5, 3: 0.2, 4: 0.1}


@pytest.mark.parametrize(
    ("alone", "again", "tied"),
    [
        (["b", "c"], (slate(("a", 0.5), ("d", 0.2)), {0: 0.5, 3: 0.2}), True),  # each retrieved another at a tie
        (["b", "c"], (slate(("d", 0.2), ("a", 0.5)), {0: 0.5, 3: 0.3, 4: 0.1}), False),
        (["b", "c"], (slate(("d", 0.2), ("a", 0.5)), {0: 0.5, 3: 0.2}), False),  # others again are candidates of one alone
        (["b", "c", "e", "f", "g"], None, False),  # no tie has so many
        ([], (slate(("d", 0.2), ("a", 0.5)), {0: 0.5, 3: 0.2, 4: 0.1 + 1e-7}), True),  # the selection tied
        ([], (slate(("d", 0.2), ("a", 0.5)), {0: 0.5, 3: 0.2, 4: 0.1 + 1e-5}), False),
    ],
)
def test_answers_that_differ_by_a_tie_in_retrieval_or_selection_are_tied(
    alone: list[str], again: tuple[Slate, dict[int, float]] | None, tied: bool
) -> None:
    def ask(request: Request) -> tuple[tuple[Slate, dict[int, float]], tuple[Slate, dict[int, float]]]:
        assert alone
        assert request.exclude == ("x", *alone)
        assert again is not None
        return FIRST, again

    assert not parity._tied(Request("parity", "u"), [], ((FIRST[0], {}), (slate(("x", 0.1)), {})), ask), "both sides failed"
    found = (FIRST, (slate(("d", 0.2), ("a", 0.5)), {}) if again is None else again)
    assert parity._tied(Request("parity", "u", exclude=("x",)), alone, found, ask) is tied


def test_equal_scores_may_change_places_and_others_may_not() -> None:
    assert parity._same(slate(("a", 0.5), ("b", 0.5)), slate(("b", 0.5), ("a", 0.5)))
    assert not parity._same(slate(("a", 0.5), ("b", 0.5)), slate(("b", 0.5), ("c", 0.3)))


def test_items_that_one_side_alone_retrieves_are_no_ties_when_they_are_many() -> None:
    better = figures([1] * 60, people=60)
    worse = figures([3] * 60, people=60)
    assert judge(better, worse, 1e-7, replace(HELD, tied=10), 10.0, STANDARD).passed
    assert judge(better, worse, 1e-7, replace(HELD, tied=1, requests=20), 10.0, STANDARD).passed, "one of few is no share"
    assert not judge(better, worse, 1e-7, replace(HELD, tied=2, requests=20), 10.0, STANDARD).passed
    refused = judge(better, worse, 1e-7, replace(HELD, tied=11), 10.0, STANDARD)
    assert refused.reasons == ["in 11 of 1000 requests ONNX and torch retrieve other items"]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=40), st.floats(0.0, 1.0), st.integers(-1, 22))
def test_a_release_is_not_asked_about_what_it_has_learned(times: list[int], share: float, until_ms: int) -> None:
    events = [Interaction(f"e{n}", "u", "i", time) for n, time in enumerate(sorted(times))]
    found = unseen_share(events, share, until_ms)
    cut, asked = int(len(events) * share), events[int(len(events) * found) :]
    assert found >= share
    if events[-1].event_time <= until_ms or cut >= len(events):
        assert found == share
    else:
        assert asked
        assert asked == [event for event in events[cut:] if event.event_time > until_ms]


met = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9), st.sampled_from(["view", "like"])), min_size=1, max_size=80)


@given(met, st.floats(0.0, 1.0), st.integers(1, 12), st.integers(1, 4))
def test_no_more_is_kept_from_training_than_the_gate_asks(
    drawn: list[tuple[int, int, str]], share: float, queries: int, people: int
) -> None:
    liked, fewest = PositiveRule(POSITIVE), Bounds(queries=3, people=people)
    events = [Interaction(f"e{n}", f"u{u}", f"i{i}", 1_000 + n, action) for n, (u, i, action) in enumerate(drawn)]
    cut, allowed = int(len(events) * (found := gate_share(events, POSITIVE, share, queries, fewest))), int(len(events) * share)

    def enough(start: int) -> bool:
        asked = [n for n in asked_of(events, liked, 0.0, first=True) if n >= start]
        return len(asked) >= max(queries, 3) and len({events[n].user_id for n in asked}) >= people

    assert found >= share, "never more than the share"
    if enough(allowed):
        assert enough(cut), "as much as the gate asks"
        assert not enough(cut + 1), "and not an event more"
    else:
        assert found == share, "all of it, where that is too little"
    assert gate_share(events, POSITIVE, share, queries + 1, fewest) <= found
    assert gate_share(events, POSITIVE, share, queries, replace(fewest, people=people + 1)) <= found
    assert gate_share(events, POSITIVE, share / 2, queries, fewest) <= found


@given(met, st.integers(1_000, 1_080), st.integers(1, 12), st.integers(1, 4))
def test_half_of_what_is_new_is_learned_from_where_the_other_half_suffices(
    drawn: list[tuple[int, int, str]], until_ms: int, queries: int, people: int
) -> None:
    fewest = Bounds(queries=3, people=people, last=1)
    events = [Interaction(f"e{n}", f"u{u}", f"i{i}", 1_000 + n, action) for n, (u, i, action) in enumerate(drawn)]
    try:
        held = held_out(events, POSITIVE, 0.5, queries, "r1", until_ms, fewest)
    except BadDataset:
        return
    new = [n for n, event in enumerate(events) if event.event_time > until_ms]
    if held.independent or not new or len(new) == len(events):
        return
    asked = [n for n in asked_of(events, PositiveRule(POSITIVE), 0.0, first=True) if n >= held.trained]
    assert len(asked) >= held.queries >= min(queries, 3), "enough to judge by is always held out"
    assert len({events[n].user_id for n in asked}) >= people
    assert held.trained >= new[0], "never queried on what the champion learned"
    fewer = [n for n in asked if n > held.trained]
    spare = len(fewer) >= 3 and len({events[n].user_id for n in fewer}) >= people
    assert not spare or held.trained >= (new[0] + len(events)) // 2, "more only where the gate needs it"


@given(met, st.integers(1_000, 1_090), st.integers(1, 12))
def test_an_existing_release_is_queried_on_newer_events_only(
    drawn: list[tuple[int, int, str]], until_ms: int, queries: int
) -> None:
    events = [Interaction(f"e{n}", f"u{u}", f"i{i}", 1_000 + n, action) for n, (u, i, action) in enumerate(drawn)]
    try:
        held = newer_held_out(events, POSITIVE, queries, "r1", until_ms, Bounds(queries=3, people=1, last=1))
    except BadDataset as exc:
        assert exc.code == "too_little_to_judge"
        return
    asked = asked_of(held.events, PositiveRule(POSITIVE), held.share, queries, first=True)
    assert asked
    assert held.independent or all(held.events[n].event_time > until_ms for n in asked)
    assert all(time_ms > until_ms for time_ms in held.held_from_ms.values())


def test_what_the_gate_keeps_does_not_grow_with_the_history() -> None:
    """With ten times the history the same number of newest events is held out."""
    kept = set()
    for n in (1_000, 10_000):
        events = [Interaction(f"e{k}", f"u{(n - k) % 40}", f"i{k}", 1_000 + k, "like") for k in range(n)]
        kept.add(len(events) - int(len(events) * gate_share(events, POSITIVE, 0.9, 60)))
    assert kept == {60}


def test_an_update_reads_all_events() -> None:
    made = CliRunner().invoke(train_command, ["nowhere", "--incremental", "--newest", "10"])
    assert isinstance(made.exception, ConfigError)
    assert "--newest" in made.exception.message
