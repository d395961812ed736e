"""Columns and specification follow from the features' declarations; values change only with the specification.

After a change of the layout or of a version, regenerate `golden.json`:

    PYTHONPATH=.:tests python tests/unit/features/test_feature_laws.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_model import FakeModel
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.features.compute import FEATURES, GENERATIONS, LAYOUT, SPEC
from models.features.context import CONTEXT, Moment
from models.features.cross import CROSS, Crossed
from models.features.item import ITEM, OfItems
from models.features.kernels.values import among
from models.features.spec import KNOWN, Feature, Group, layout, specification
from models.features.user import USER, OfUsers
from models.pipeline.batch import Candidates, Queries, Retrieved
from models.pipeline.clock import after_all
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from models.pipeline.sources import RETRIEVING, SOURCES, HistorySource, RulesSource
from models.pipeline.stages import Observer
from schemas.records import Interaction, Item, Request
from training.replay.world import SimulatedWorker

GOLDEN = Path(__file__).with_name("golden.json")
PUBLISHED = Path(__file__).with_name("published.json")
"Names of the features of each published specification, in order, all of version 1."
GROUPS = (USER, CONTEXT, ITEM, CROSS)
HOUR = 3_600_000


class Ranked(Observer):
    def __init__(self) -> None:
        self.found: Candidates | None = None
        self.brought: dict[str, Retrieved] = {}

    def on_retrieved(self, queries: Queries, source: str, brought: Retrieved) -> None:
        self.brought[source] = brought

    def on_ranked(self, queries: Queries, candidates: Candidates) -> None:
        self.found = candidates


N_ITEMS = 14


def observed() -> Ranked:
    """Run three requests in a small world; returns the observer."""
    slot, ranked = ModelSlot(), Ranked()
    items = [
        Item(
            f"i{n}",
            f"{['red', 'blue'][n % 2]} thing {n}",
            "of glass",
            (f"c{n % 3}",) if n % 5 else ("c0", "c1"),
            price=None if n % 4 == 3 else 1.5 * n,
            published_at=HOUR * n if n % 2 else None,
        )
        for n in range(N_ITEMS)
    ]
    world = SimulatedWorker(items, slot)
    world.publish(100 * HOUR)
    actions = ("view", "like", "buy")
    world.apply(
        [
            Interaction(
                f"e{n}",
                f"u{n % 3}",
                f"i{n // 3 % (13 - 4 * (n % 3))}",
                HOUR * (100 + 5 * n),
                actions[n // 3 % 3],
                None if n % 4 == 1 else n % 6 / 2,
            )
            for n in range(40)
        ]
    )
    for user in ("u1", "u2"):
        world.know(world.record(user))
    slot.swap(FakeModel(world.items, transitions=True))
    requests = [
        Request("a", "u1", k=5),
        Request("b", "stranger", k=5, context={"device": "tv", "mood": "calm"}),
        Request("c", "u2", k=3, categories=("c0",), candidates=("i1", "i5", "i12", "i13", "i0")),
        Request("d", "u1", k=5, candidates=("i0", "i4", "i8", "i9", "i11"), repeats=True),
    ]
    pipeline = CandidatePipeline(world.items, slot=slot, clock=after_all, observers=[ranked])
    pipeline.run(requests, [world.record(request.user_id) for request in requests], [None] * 4)
    return ranked


def computed() -> Candidates:
    """Return the candidates of that run, with their features."""
    found = observed().found
    assert found is not None
    return found


def by_name(features: NDArray[np.float32]) -> dict[str, list[float]]:
    return {name: [float(f"{value:.6g}") for value in features[:, n].tolist()] for n, name in enumerate(FEATURES)}


def golden() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(GOLDEN.read_text())
    return read


def test_every_feature_has_a_name_of_its_own_and_a_description() -> None:
    assert len(set(FEATURES)) == len(FEATURES) == len(LAYOUT)
    assert sum((group.names for group in GROUPS), ()) == FEATURES
    for group in GROUPS:
        for place, compute in group._compute:
            assert compute.__doc__, f"{group.names[place]} says what it is"


def test_the_columns_are_as_many_as_the_layout_says_and_none_is_left_out() -> None:
    features = computed().features
    assert features.shape[1] == len(FEATURES)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
    never = [name for n, name in enumerate(FEATURES) if not features[:, n].any()]
    assert all(name.startswith(("context", "item_action")) for name in never), f"the small world does not reach {never}"
    for group in GROUPS:
        filled = np.zeros(len(group.features), np.int64)
        for place, _ in group._compute:
            filled[place] += 1
        assert (filled == 1).all()


@pytest.mark.parametrize("view", [OfUsers, Moment, OfItems, Crossed])
def test_every_view_takes_shared_columns(view: type) -> None:
    """An `@once` property stores its value in the view's `__dict__`, which a class with slots lacks."""
    assert hasattr(object.__new__(view), "__dict__")


def test_a_name_that_is_declared_twice_is_refused() -> None:
    one, other = Group[float](), Group[float]()
    one.feature("a", "b")(lambda view: view)
    other.feature("b")(lambda view: view)
    with pytest.raises(ValueError, match="twice: b"):
        layout((one, other))


@given(st.data())
def test_another_name_order_or_version_is_another_specification(data: st.DataObject) -> None:
    features = list(LAYOUT)
    n = data.draw(st.integers(0, len(features) - 1))
    match data.draw(st.sampled_from(["rename", "raise", "swap", "remove", "insert"])):
        case "rename":
            features[n] = Feature(features[n].name + "x", features[n].version)
        case "raise":
            features[n] = Feature(features[n].name, features[n].version + data.draw(st.integers(1, 9)))
        case "swap":
            m = data.draw(st.integers(0, len(features) - 1).filter(lambda m: m != n))
            features[n], features[m] = features[m], features[n]
        case "remove":
            del features[n]
        case "insert":
            features.insert(n, Feature("more"))
    found, published = specification(features), json.loads(PUBLISHED.read_text())
    assert found != SPEC
    # removing an addition to a published layout gives that layout again
    assert found not in published or features == [Feature(name) for name in published[found]]


def test_published_layouts_keep_their_names() -> None:
    """Existing releases and logged examples name `f7`, and stay usable while the layout is the same."""
    published: dict[str, list[str]] = json.loads(PUBLISHED.read_text())
    assert {specification([Feature(name) for name in names]) for names in published.values()} == set(published)
    assert sorted(KNOWN.values()) == sorted(published)


def test_releases_of_earlier_generations_read_the_features_that_they_were_trained_on() -> None:
    published: dict[str, list[str]] = json.loads(PUBLISHED.read_text())
    assert list(GENERATIONS)[-1] == SPEC
    assert GENERATIONS[SPEC].tolist() == list(range(len(FEATURES)))
    for spec, names in published.items():
        assert [FEATURES[n] for n in GENERATIONS[spec]] == names


@given(st.lists(st.lists(st.sampled_from([None, 0.5, 1.0, 1.5, 4.0]), max_size=6), min_size=1, max_size=4))
def test_a_value_among_those_of_its_query_is_placed_by_counting(queries: list[list[float | None]]) -> None:
    values = np.asarray([np.nan if v is None else v for query in queries for v in query], np.float32)
    spans = np.cumsum([0, *map(len, queries)])
    found, expected = among(values, spans), []
    for query in queries:
        known = [v for v in query if v is not None]
        for v in query:
            if v is None or len(known) < 2:
                expected.append((0.0, 0.0))
                continue
            below, equal = sum(k < v for k in known), sum(k == v for k in known)
            expected.append(((below + (equal - 1) / 2) / (len(known) - 1) - 0.5, v - sum(known) / len(known)))
    assert found == pytest.approx(np.asarray(expected, np.float32).reshape(-1, 2), abs=1e-6)


def test_every_source_that_retrieves_has_a_feature_and_no_other() -> None:
    told = [name.removeprefix("by_") for name in FEATURES if name.startswith("by_")]
    assert told == [source.name for source in RETRIEVING]


@pytest.mark.parametrize("source", [source.name for source in SOURCES if source not in (RulesSource, HistorySource)])
def test_every_source_brings_each_item_of_the_catalogue_once_with_a_finite_score(source: str) -> None:
    brought = observed().brought[source]
    assert len(brought.item_row) > 0, "the small world does not reach it"
    assert ((brought.item_row >= 0) & (brought.item_row < N_ITEMS)).all()
    assert np.isfinite(brought.score).all()
    pairs = list(zip(brought.query_row.tolist(), brought.item_row.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)


def test_values_change_only_with_the_specification() -> None:
    written, found = golden(), by_name(computed().features)
    assert written["spec"] == SPEC, "the specification is another: write golden.json anew, as the module says"
    assert list(written["features"]) == list(found)
    for name, values in found.items():
        expected = pytest.approx(written["features"][name], rel=1e-4, abs=1e-5)
        assert values == expected, f"{name} means something else now: raise its version"


if __name__ == "__main__":
    text = json.dumps({"spec": SPEC, "features": by_name(computed().features)}, indent=0)
    GOLDEN.write_text(text.replace(",\n", ", ").replace("[\n", "[").replace("\n]", "]").replace('], "', '],\n"') + "\n")
