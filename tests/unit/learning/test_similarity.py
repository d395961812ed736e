"""Content similarity uses weights that are learned from history."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from learning_corpus import corpus
from numpy.typing import NDArray

from models.features.compute import FEATURES
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from models.pipeline.sources import RECENCY
from models.release.release import Manifest, Release
from models.release.serving import ServingModel
from schemas.errors import ReleaseRejected
from schemas.records import Request
from training.data.table import EventTable
from training.loop.group import Group
from training.release.learned import Learned
from training.replay.tap import Tap
from training.replay.world import SimulatedWorker
from training.retrieval import content_weights as similarity
from training.retrieval.content import EncodedContent
from training.retrieval.content_weights import FEWEST, LEAST, content_weights
from training.retrieval.towers import Content

ITEMS, TASTES = 300, 6


def units(rng: np.random.Generator, n: int, d: int) -> NDArray[np.float32]:
    drawn = rng.normal(size=(n, d)).astype(np.float32)
    scaled: NDArray[np.float32] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return scaled


def told(rng: np.random.Generator, taste: NDArray[np.int64], clearly: float) -> NDArray[np.float32]:
    """Return item vectors that indicate the taste, more clearly for larger `clearly`."""
    vectors = clearly * units(rng, TASTES, 16)[taste] + units(rng, len(taste), 16)
    scaled: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def history(rng: np.random.Generator, taste: NDArray[np.int64], people: int = 60, each: int = 20) -> EventTable:
    """A history in which every user interacts with items of one taste, and likes them."""
    user = np.tile(np.arange(people), each)
    return met(user, np.asarray([rng.choice(np.flatnonzero(taste == u % TASTES)) for u in user], np.int64))


def met(user: NDArray[np.int64], item: NDArray[np.int64], liked: NDArray[np.bool_] | None = None) -> EventTable:
    """A table of interactions, each liked at once or, according to `liked`, later."""
    n, seen = len(user), set[tuple[int, int]]()
    first = np.ones(n, np.bool_)
    for k, pair in enumerate(zip(user.tolist(), item.tolist(), strict=True)):
        first[k] = pair not in seen
        seen.add(pair)
    ones, none = np.ones(n, np.bool_), np.zeros(n, np.float32)
    liked = ones if liked is None else liked
    return EventTable(user, item, np.arange(n), np.zeros(n, np.int64), none, ~ones, liked, first, (none + 1)[:, None])


def weighed(table: EventTable, parts: dict[str, NDArray[np.float32]]) -> dict[str, float]:
    return content_weights(table, parts)[0]


@pytest.mark.parametrize("telling", ["words", "text", "image"])
def test_what_says_more_of_what_is_liked_weighs_more(telling: str) -> None:
    rng = np.random.default_rng(1)
    taste = rng.integers(0, TASTES, ITEMS)
    parts = {name: told(rng, taste, 1.0 if name == telling else 0.0) for name in ("words", "text", "image")}
    weights, asked = content_weights(history(rng, taste), parts)
    assert weights[telling] == 1.0
    assert all(LEAST <= weight < 0.3 for name, weight in weights.items() if name != telling)
    assert 900 < asked < 1_140  # no event precedes each user's first one, and some interact with an item again


def test_what_says_as_much_weighs_as_much() -> None:
    rng = np.random.default_rng(2)
    taste = rng.integers(0, TASTES, ITEMS)
    table = history(rng, taste)
    for clearly in (0.7, 0.0):
        weights = weighed(table, {name: told(rng, taste, clearly) for name in ("words", "text")})
        assert min(weights.values()) > 0.5


def test_where_likes_follow_views_they_are_learned_from() -> None:
    """Liked items were viewed before: the query is at the first interaction."""
    rng = np.random.default_rng(6)
    taste = rng.integers(0, TASTES, ITEMS)
    plain = history(rng, taste)
    twice = np.repeat(np.arange(len(plain)), 2)
    table = met(plain.user[twice], plain.item[twice], np.arange(len(twice)) % 2 == 1)
    assert not (table.first & table.liked).any()
    weights, asked = content_weights(table, {"text": told(rng, taste, 0.0), "image": told(rng, taste, 1.0)})
    assert asked > 900
    assert weights["image"] == 1.0
    assert weights["text"] < 0.3


def test_being_popular_says_nothing_of_what_is_alike() -> None:
    """The popular half of the items has an image of one style, which is unrelated to taste."""
    rng = np.random.default_rng(7)
    taste = rng.integers(0, TASTES, ITEMS)
    often = np.where(np.arange(ITEMS) < ITEMS // 2, 20.0, 1.0)
    user = np.tile(np.arange(60), 20)
    item = []
    for u in user:
        odds = often * (taste == u % TASTES)
        item.append(rng.choice(ITEMS, p=odds / odds.sum()))
    style = np.zeros((ITEMS, 16), np.float32)
    style[: ITEMS // 2, 0] = 1.0
    weights = weighed(met(user, np.asarray(item, np.int64)), {"text": told(rng, taste, 1.0), "image": style + 0.01})
    assert weights["text"] == 1.0
    assert weights["image"] < 0.3


def test_what_history_says_nothing_of_weighs_least() -> None:
    """No item has the part, or only some items without interactions."""
    rng = np.random.default_rng(3)
    taste = rng.integers(0, TASTES, ITEMS)
    taste[-5:] = TASTES  # items of no user's taste
    table, parts = history(rng, taste), {"words": told(rng, taste % TASTES, 0.5), "text": told(rng, taste % TASTES, 1.0)}
    image = np.zeros((ITEMS, 8), np.float32)
    without = weighed(table, parts)
    assert weighed(table, {**parts, "image": image}) == {**without, "image": LEAST}
    image[-5:] = 1.0
    assert weighed(table, {**parts, "image": image}) == {**without, "image": LEAST}


def test_from_too_little_nothing_is_learned() -> None:
    rng = np.random.default_rng(4)
    taste = rng.integers(0, TASTES, ITEMS)
    few = history(rng, taste, people=5, each=FEWEST // 5)  # no event precedes the first of each user
    assert weighed(few, {"words": told(rng, taste, 1.0), "text": told(rng, taste, 0.0)}) == {"words": 1, "text": 1}


def test_it_is_learned_from_what_came_before_alone() -> None:
    """A like is compared only with earlier events: every user interacts with each item twice in a row."""
    rng = np.random.default_rng(5)
    taste = rng.integers(0, TASTES, ITEMS)
    plain = history(rng, taste)
    again = np.repeat(np.arange(len(plain)), 2)
    weights = weighed(
        met(plain.user[again], plain.item[again]), {"words": told(rng, taste, 0.5), "text": told(rng, taste, 0.0)}
    )
    assert weights["words"] == 1.0
    assert weights["text"] < 0.3


def test_weights_are_learned_on_the_scores_that_serve() -> None:
    """Scores agree up to one factor per user, also for items that lack a part, which contributes nothing to them."""
    rng = np.random.default_rng(8)
    weights = np.asarray([0.2, 1.0, 0.6], np.float32)
    parts = [units(rng, 40, 8) * (rng.random((40, 1)) < 0.7).astype(np.float32) for _ in weights]
    among, past = rng.integers(0, 40, (5, 30)), rng.integers(0, 40, (5, len(RECENCY)))
    past[0, 7:] = -1
    recency = RECENCY * (past >= 0)
    compared = torch.from_numpy(similarity._compared(among, past, parts))
    scores = similarity._scores(compared, torch.from_numpy(recency), torch.from_numpy(weights)).numpy()
    whole = np.concatenate([part * np.sqrt(weight) for part, weight in zip(parts, weights, strict=True)], axis=1)
    served = np.einsum("qcd,qd->qc", whole[among], np.einsum("qh,qhd->qd", recency, whole[past]))
    assert np.allclose(scores * recency.sum(axis=1, keepdims=True), served, atol=1e-5)


def test_all_processes_of_a_training_read_content_by_the_first_ones_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    taste = rng.integers(0, TASTES, ITEMS)
    hashed, text, image = (told(rng, taste, clearly) for clearly in (0.5, 1.0, 0.2))
    projections = {"text": np.eye(17, 16, dtype=np.float32), "image": np.eye(17, 16, dtype=np.float32)}
    encoded = EncodedContent(Content(hashed, text, image, np.ones((ITEMS, 2), np.float32)), projections, {}, {})
    first = torch.tensor([0.5, 1.0, 0.25], dtype=torch.float64)
    monkeypatch.setattr(Group, "gathered", lambda _, mine: [first, mine])
    encoded.weigh(history(rng, taste), 0)
    assert encoded.weights == {"words": 0.5, "text": 1.0, "image": 0.25}
    assert np.allclose(encoded.content.image, image * 0.5)
    assert np.allclose(encoded.projections["image"], projections["image"] * 0.5)
    assert np.array_equal(encoded.content.text, text)


# ---- in a release


def serving(learned: Learned, content: dict[str, float]) -> tuple[SimulatedWorker, ServingModel, Tap, CandidatePipeline]:
    manifest = replace(learned.manifest, content=content)
    world, slot = SimulatedWorker(corpus()[0]), ModelSlot()
    slot.swap(model := ServingModel(Release(manifest, learned.arrays, learned.graphs, learned.item_ids)))
    pipeline = CandidatePipeline(world.items, slot=slot)
    world.apply(corpus()[1][:300])
    return world, model, Tap.into(pipeline), pipeline


@pytest.mark.parametrize(
    "content", [{}, {"words": 0.3, "text": 1.0, "image": 0.09}, {"words": 0.001, "text": 0.001, "image": 1.0}]
)
def test_content_is_compared_by_the_releases_weights(learned: Learned, content: dict[str, float]) -> None:
    """Compared with a plain recomputation, for retrieval and for the ranker's features."""
    world, model, tap, pipeline = serving(learned, content)
    user = world.record("u1")
    pipeline.run([Request("r", "u1", k=5)], [user], [None])
    items, queries, ranked = world.items, tap.queries, tap.ranked
    assert queries is not None
    assert ranked is not None
    n = len(items)
    parts = [items.text[:n], model.rows.text[:n], model.rows.image[:n]]
    scale = [content.get(name, 1.0) ** 0.5 for name in ("words", "text", "image")]
    plain = np.concatenate([part * by for part, by in zip(parts, scale, strict=True)], axis=1)
    plain /= sum(content.get(name, 1.0) for name in ("words", "text", "image")) ** 0.5
    assert (np.linalg.norm(plain, axis=1) <= 1 + 1e-5).all()
    assert np.allclose(model.content[:n], plain, atol=1e-6)
    rows = queries.history_rows[0]
    wanted = rows[queries.liked[0]][: len(RECENCY)]
    mean = plain[wanted].sum(axis=0)
    place = FEATURES.index("similar"), FEATURES.index("similar_last")
    assert np.allclose(ranked.features[:, place[0]], plain[ranked.item_row] @ (mean / np.linalg.norm(mean)), atol=1e-5)
    assert np.allclose(ranked.features[:, place[1]], (plain[ranked.item_row] @ plain[wanted[:5]].T).max(axis=1), atol=1e-5)


def test_weights_are_kept_with_a_release_and_may_be_missing(learned: Learned) -> None:
    assert set(learned.manifest.content) == {"words", "text", "image"}
    assert Manifest.parse(learned.manifest.to_bytes()).content == learned.manifest.content
    before = learned.manifest.to_bytes().decode()
    start = before.index(' "content": {')
    older = before[:start] + before[before.index("},", start) + 3 :]
    assert Manifest.parse(older.encode()).content == {}
    wrong: list[dict[str, float]] = [{"text": -0.1}, {"text": 0.0}, {"text": 1e39}, {"txt": 1.0}, {"text": float("nan")}]
    for content in wrong:
        with pytest.raises(ReleaseRejected):
            Manifest.parse(replace(learned.manifest, content=content).to_bytes())
