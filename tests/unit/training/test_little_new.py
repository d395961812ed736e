"""An update that finds little does less, and never fails: it ends with a named reason, or with a small release."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from learning_corpus import COLOURS, POSITIVE, corpus, write_dataset

from models.release.release import Release, list_releases
from schemas.records import Interaction, Item
from training.cli.train import train_command
from training.data.amounts import FEWEST_NEW
from training.data.corpus import Corpus
from training.evaluation.bounds import STANDARD
from training.evaluation.updatable import updatable
from training.release.learned import Learned

SHIFT = 1_600_000_000_000
"What `write_dataset` adds to times."
REASONS = {"nothing_new", "too_little", "too_little_to_judge"}
HOUR = 3_600_000
Train = Callable[..., dict[str, Any]]


def new(n: int, action: str = "like", users: int = 30, item: str = "i{}", of: int = 40) -> list[Interaction]:
    """New events, one a second, each user through the items of their colour."""
    last = corpus()[1][-1].event_time
    return [
        Interaction(
            f"n{action}{k}", f"u{k % users}", item.format((k % users + 3 * (k // users)) % of), last + 1_000 * (k + 1), action
        )
        for k in range(n)
    ]


@pytest.fixture
def train(learned: Learned, tmp_path: Path, vectors: Path) -> Train:
    """Update a champion that was trained on the corpus."""
    releases, (items, events) = tmp_path / "releases", corpus()
    manifest = replace(learned.manifest, trained_until_ms=events[-1].event_time + SHIFT)
    champion = replace(learned, manifest=manifest).write(releases, {"gate": {"passed": True}}).name
    runs = 0

    def run(more: list[Interaction], old: list[Interaction] = events, catalogue: list[Item] = items) -> dict[str, Any]:
        nonlocal runs
        runs += 1
        data = write_dataset(tmp_path / f"data{runs}", catalogue, [*old, *more])
        at = ["--out", str(releases), "--cache", str(vectors.parent), "--against", champion]
        options = [str(data), *at, "--rank-ms", "10000", "--incremental", "--json"]
        ran = CliRunner().invoke(train_command, options, catch_exceptions=False)
        assert ran.exit_code == 0, ran.output
        found = dict(json.loads(ran.stdout.strip().splitlines()[-1]))
        if found["release"] is None:
            assert found["skipped"] in REASONS
            assert found["against"] == champion
            assert "nothing to learn yet: " in ran.stderr
            assert [each.name for each in list_releases(releases)] == [champion], "nothing is written"
        return found

    return run


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ([], "nothing_new"),
        (new(10), "nothing_new"),
        (new(FEWEST_NEW - 1), "nothing_new"),
        (new(400, item="unknown{}"), "nothing_new"),
        (new(400, users=1), "too_little_to_judge"),
        (new(400, "view"), "too_little_to_judge"),
        (new(400, "dislike"), "too_little_to_judge"),
    ],
    ids=["none", "few", "one too few", "unknown items", "one user", "only views", "an action never seen"],
)
def test_with_little_that_is_new_nothing_is_written_and_the_reason_is_named(
    train: Train, more: list[Interaction], reason: str
) -> None:
    assert train(more)["skipped"] == reason


def test_a_history_that_was_erased_is_no_error(train: Train) -> None:
    _, events = corpus()
    assert train([], events[:60])["skipped"] == "too_little"
    views = [event for event in events if event.action == "view"]
    assert train([], views)["skipped"] == "too_little"
    assert train(new(40), events[-70:])["skipped"] == "nothing_new"
    assert train([], events[:60], [Item("another", "A thing")])["skipped"] == "too_little"


@pytest.mark.parametrize("kind", ["likes", "views and then likes", "new users", "new items"])
def test_new_events_of_one_kind_give_a_release(train: Train, kind: str, tmp_path: Path) -> None:
    items, _ = corpus()
    if kind == "likes":
        more = new(300)
    elif kind == "views and then likes":
        views = new(300, "view")
        more = [*views, *(replace(event, event_time=event.event_time + HOUR) for event in new(200, users=40))]
    elif kind == "new users":  # of one event each, and then of one like
        early = [replace(event, user_id=f"n{n}") for n, event in enumerate(new(100, "view"))]
        likes = [replace(event, user_id=f"n{n}", item_id=f"i{(n + 3) % 40}") for n, event in enumerate(new(100))]
        more = [*early, *(replace(event, event_time=event.event_time + HOUR) for event in likes)]
    else:
        items = [*items, *(Item(f"new{n}", f"{COLOURS[n % 3]} thing", "of glass", (COLOURS[n % 3],)) for n in range(40))]
        more = new(300, item="new{}")
    made = train(more, catalogue=items)
    assert made["release"] is not None, made
    release = Release.open(tmp_path / "releases" / made["release"])
    assert set(release.item_ids) == {item.item_id for item in items}
    assert made["gate"]["passed"] or made["gate"]["reasons"]


EVENTS = st.lists(
    st.tuples(st.integers(0, 45), st.integers(0, 50), st.sampled_from(["like", "view", "skip"]), st.integers(0, 10**6)),
    max_size=200,
)


@given(EVENTS)
def test_the_choice_of_what_is_held_out_ends_with_a_reason_or_enough(drawn: list[tuple[int, int, str, int]]) -> None:
    """Whatever is new: what is held out and what is learned from are all events, and both suffice, or the reason is named."""
    items, events = corpus()
    last = events[-1].event_time
    more = [Interaction(f"d{n}", f"u{u}", f"i{i}", last + after, a) for n, (u, i, a, after) in enumerate(drawn)]
    events = sorted([*events, *more], key=lambda event: event.event_time)
    found = updatable(Corpus("glass", items, events, POSITIVE), "champion", last, 0.9, 200)
    if found.held is None:
        assert found.skipped in REASONS
        assert found.message
    else:
        assert found.held.queries >= STANDARD.queries or found.held.independent
        assert found.new >= FEWEST_NEW
        assert sorted(event.event_id for event in found.held.events) == sorted(event.event_id for event in events)
