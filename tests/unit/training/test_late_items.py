"""An evaluation uses the text and image of an item that appears after training from its publication on, as a worker does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from learning_corpus import POSITIVE, corpus, pictured

from models.items.store import ItemStore
from models.items.vectors import HALF, ItemVector
from models.release.serving import ServingModel
from schemas.records import Interaction, Item
from training.data.corpus import Corpus
from training.encoders.live import LiveEncoders, encode_catalogue
from training.evaluation.evaluate import EvaluationPlan
from training.measure import Encode, measure
from training.release.learned import Learned
from training.replay.probe import BEYOND
from training.replay.world import SimulatedWorker

LATE = "late"


def test_a_vector_comes_with_its_item_and_not_before() -> None:
    vectors = {name: [ItemVector("text", "e", b"", np.ones(3, HALF))] for name in ("early", LATE)}
    world = SimulatedWorker([Item("early"), Item("plain"), Item(LATE, published_at=100)], vectors=vectors)

    def present() -> list[str]:
        _, there = world.items.vectors.read("e", np.arange(len(world.items)), 3)
        return [world.items.ids[row] for row in np.flatnonzero(there).tolist()]

    assert present() == ["early"]
    world.publish(99)
    assert world.items.row_of(LATE) == -1
    world.publish(100)
    assert present() == ["early", LATE]


@pytest.fixture
def late(learned: Learned, vectors: Path) -> tuple[Learned, Corpus, Path]:
    """A release, and later events: an item with only an image is published, and liked by many."""
    seen, unmet = pictured(vectors / "images")
    _, events = corpus()
    cut = int(len(events) * 0.8)
    item = Item(LATE, image=str(vectors / "images" / "blue4.png"), published_at=events[cut + 20].event_time)
    # u2, u5 … like blue items; each of them interacts with the late item once
    fans = iter(range(2, 30, 3))
    after: list[Interaction] = []
    for n, event in enumerate(events[cut:]):
        fan = next(fans, None) if n > 20 and n % 15 == 0 else None
        after.append(event if fan is None else replace(event, user_id=f"u{fan}", item_id=LATE, action="like"))
    return learned, Corpus("late", [*seen, *unmet, item], [*events[:cut], *after], POSITIVE), vectors


def asked(learned: Learned, what: Corpus, encode: Encode, *, own: bool) -> tuple[ServingModel, list[int], list[str]]:
    """Return the final model, and for each query on the late item its rank among the candidates and its sources."""
    model = ServingModel(learned.release())
    figures, _ = measure(
        what, EvaluationPlan(), lambda part, done, of: None, "measure", model, encode, learned if own else None
    )
    found = [one.probed for one in figures.asked if one.item_id == LATE]
    return model, [one.candidate_rank for one in found], [name for one in found for name in one.sources]


def late_row(model: ServingModel) -> int:
    (row,) = np.flatnonzero(model.rows.number_of_row[: model.bound] < 0)
    return int(row)


@pytest.mark.parametrize("own", [True, False])
def test_a_late_item_has_in_an_evaluation_the_vectors_that_it_has_in_a_worker(
    late: tuple[Learned, Corpus, Path], own: bool
) -> None:
    learned, what, cache = late
    wanted: list[str] = []

    def encode(items: Sequence[Item]) -> dict[str, tuple[ItemVector, ...]]:
        wanted.extend(item.item_id for item in items)
        return encode_catalogue(items, cache)

    model, places, _ = asked(learned, what, encode, own=own)
    assert places
    assert wanted == ([LATE] if own else [item.item_id for item in what.items]), "what training encoded needs no more"
    row = late_row(model)
    assert [model.rows.text[row].any(), model.rows.image[row].any()] == [False, True]
    store, serving = ItemStore(1), ServingModel(learned.release())
    for item in what.items:
        store.upsert(item)
    (mine,) = LiveEncoders(cache).encode([what.items[-1]])
    store.set_vectors(LATE, mine)
    serving.sync(store)
    assert np.array_equal(model.vectors[row], serving.vectors[store.row_of(LATE)])
    assert np.array_equal(model.content[row], serving.content[store.row_of(LATE)])


def test_its_image_is_how_people_find_it(late: tuple[Learned, Corpus, Path]) -> None:
    learned, what, cache = late
    _, places, sources = asked(learned, what, partial(encode_catalogue, cache=cache), own=True)
    _, blind, unseen = asked(learned, what, lambda items: {}, own=True)
    assert "content" in sources
    assert "content" not in unseen, "without words and without vectors nothing says what it resembles"
    assert BEYOND not in places
    assert np.mean(places) < np.mean(blind)
