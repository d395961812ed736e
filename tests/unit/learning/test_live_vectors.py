"""An item that arrives after training gets the vector that training would have computed; missing modalities are learned."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_corpus import KINDS, corpus, pictured
from PIL import Image

from models.features.compute import FEATURES
from models.items.store import TEXT_DIMENSIONS, ItemStore
from models.items.vectors import HALF, ItemVector, VectorStore, fingerprint, vectors_from, vectors_to
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from models.release.release import Release
from models.release.rows import SYNC_AT_ONCE, widths_of
from models.release.serving import ServingModel
from models.tables.users import UserTable
from schemas.codec import decode, encode
from schemas.columns import EventColumns
from schemas.errors import BadEvent, ReleaseRejected
from schemas.records import Interaction, Item, Request
from training.encoders.live import LiveEncoders
from training.release.learned import Learned
from training.replay.world import SimulatedWorker

World = tuple[Learned, list[Item], list[Item], Path]


@pytest.fixture
def world(learned: Learned, vectors: Path) -> World:
    """The release, the items with and without interactions in training, and the cache of vectors."""
    return learned, *pictured(vectors / "images"), vectors


def bound(learned: Learned, items: Sequence[Item], store: ItemStore | None = None) -> tuple[ServingModel, ItemStore]:
    store = store or ItemStore(1)
    for item in items:
        store.upsert(item)
    model = ServingModel(learned.release())
    while not model.synced(store):
        model.sync(store)
    return model, store


def twins(unmet: Sequence[Item]) -> list[Item]:
    return [replace(item, item_id=item.item_id.replace("unmet", "twin")) for item in unmet]


def arrive(model: ServingModel, store: ItemStore, items: Sequence[Item], cache: Path) -> None:
    for item, vectors in zip(items, LiveEncoders(cache).encode(items), strict=True):
        assert store.set_vectors(item.item_id, vectors) == 0
    while not model.synced(store):
        model.sync(store)


@pytest.mark.parametrize("shared_cache", [True, False])
def test_a_live_vector_is_the_one_that_training_gives_to_the_same_content_with_its_id_hidden(
    world: World, tmp_path: Path, shared_cache: bool
) -> None:
    learned, seen, unmet, cache = world
    model, store = bound(learned, [*seen, *unmet, *twins(unmet)])
    arrive(model, store, twins(unmet), cache if shared_cache else tmp_path)
    trained = model.vectors[store.rows_of([item.item_id for item in unmet])]
    live = model.vectors[store.rows_of([item.item_id for item in twins(unmet)])]
    # other batches may round to the other neighbour in half precision
    assert live == pytest.approx(trained, abs=1e-5 if shared_cache else 5e-3)
    for columns in (model.rows.text, model.rows.image, model.content):
        pairs = [columns[store.rows_of([f"{kind}-{name}" for name in KINDS])] for kind in ("unmet", "twin")]
        assert pairs[1] == pytest.approx(pairs[0], abs=1e-5 if shared_cache else 5e-3)


def test_the_ranker_sees_a_live_item_as_one_of_the_release_with_the_same_content(world: World) -> None:
    learned, seen, unmet, cache = world
    model, store = bound(learned, [*seen, *unmet, *twins(unmet)])
    arrive(model, store, twins(unmet), cache)
    table = UserTable(store, lambda keys: [None] * len(keys))
    liked = [Interaction(f"e{n}", "u", item.item_id, 1_000 + n, "like", 1.0) for n, item in enumerate(seen[:12])]
    table.apply(EventColumns.of(liked, range(len(liked))))
    slot = ModelSlot()
    slot.swap(model)
    asked = [*unmet, *twins(unmet)]
    request = Request("r", "u", k=len(asked), candidates=tuple(item.item_id for item in asked))
    (slate,) = CandidatePipeline(store, slot=slot).run([request], table.lookup(["u"]), [None])
    found = {item.item_id: np.asarray(item.features) for item in slate.items}
    for one, other in zip(unmet, twins(unmet), strict=True):
        assert found[other.item_id] == pytest.approx(found[one.item_id], abs=1e-4)
    content = [FEATURES.index(name) for name in ("similar", "similar_last")]
    whole = next(item for item in twins(unmet) if item.image and item.title)
    assert (np.abs(found[whole.item_id][content]) > 1e-3).all()


@pytest.mark.parametrize("known", [0, 900])
def test_the_ranker_tells_what_training_met_whatever_the_worker_has_seen(world: World, known: int) -> None:
    """This includes the release's items without interactions, and holds for any history of the worker."""
    learned, seen, unmet, _ = world
    every = [*seen, *unmet, *twins(unmet)]
    stream, slot = SimulatedWorker(every), ModelSlot()
    slot.swap(ServingModel(learned.release()))
    pipeline = CandidatePipeline(stream.items, slot=slot)
    since = [Interaction(f"since{n}", "u", item.item_id, 1_000 + n, "like") for n, item in enumerate([*unmet, *twins(unmet)])]
    stream.apply([*corpus()[1][:known], *since])
    request = Request("r", "other", k=len(every), candidates=tuple(item.item_id for item in every))
    (slate,) = pipeline.run([request], [None], [None])
    place = FEATURES.index("item_learned")
    assert len(slate.items) == len(every)
    told = {item.item_id for item in slate.items if np.asarray(item.features)[place] == 1}
    assert told == {event.item_id for event in corpus()[1]}


def test_each_modality_moves_the_vector_and_missing_is_not_zero(
    world: World,
) -> None:
    """The tower learned a stand-in for a missing text or image, which differs from a vector of 0."""
    learned, _, _, _ = world
    model = ServingModel(learned.release())
    hashed = np.zeros((4, TEXT_DIMENSIONS), np.float32)
    text, image = (np.zeros((4, known.shape[1]), np.float32) for known in (model.release.text, model.release.image))
    present = np.asarray([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)
    found = model._graphs.item(hashed, text, image, present)
    apart = [float(np.abs(found[a] - found[b]).max()) for a in range(4) for b in range(a)]
    assert min(apart) > 1e-3


def test_vectors_that_come_late_or_change_or_go_change_what_serves(
    world: World,
) -> None:
    learned, seen, unmet, cache = world
    both = twins(unmet)[0]
    model, store = bound(learned, [*seen, both])
    row = store.row_of(both.item_id)
    without = model.vectors[row].copy()
    assert not model.rows.text[row].any()
    assert not model.rows.image[row].any()
    arrive(model, store, [both], cache)
    full = model.vectors[row].copy()
    assert model.rows.text[row].any()
    assert model.rows.image[row].any()
    assert np.abs(full - without).max() > 1e-3
    store.upsert(replace(both, title="something else"))  # its vectors stay until the encoders have read it again
    model.sync(store)
    assert model.rows.text[row].any()
    assert model.rows.image[row].any()
    store.upsert(both)
    store.remove_vectors(both.item_id)
    model.sync(store)
    assert model.vectors[row] == pytest.approx(without, abs=1e-6)
    known = store.row_of(seen[1].item_id)
    before = model.vectors[known].copy()
    arrive(model, store, [replace(seen[1], image=None)], cache)
    assert np.array_equal(model.vectors[known], before), "what training saw keeps its vector"


def test_vectors_may_come_before_their_item(world: World) -> None:
    learned, seen, unmet, cache = world
    both = twins(unmet)[0]
    model, store = bound(learned, seen)
    arrive(model, store, [both], cache)
    store.upsert(both)
    model.sync(store)
    other, theirs = bound(learned, [*seen, both])
    arrive(other, theirs, [both], cache)
    assert model.vectors[store.row_of(both.item_id)] == pytest.approx(other.vectors[theirs.row_of(both.item_id)], abs=1e-6)


def test_another_encoder_than_training_had_counts_as_missing(world: World) -> None:
    learned, seen, unmet, cache = world
    both = twins(unmet)[0]
    model, store = bound(learned, [*seen, both])
    without = model.vectors[store.row_of(both.item_id)].copy()
    for vectors in LiveEncoders(cache).encode([both]):
        store.set_vectors(both.item_id, [replace(vector, encoder=f"{vector.encoder}-next") for vector in vectors])
    model.sync(store)
    assert np.array_equal(model.vectors[store.row_of(both.item_id)], without)
    row = store.row_of(both.item_id)
    assert not model.rows.text[row].any()
    assert not model.rows.image[row].any()


def test_a_release_of_format_1_serves_as_it_did(world: World, tmp_path: Path) -> None:
    learned, seen, unmet, cache = world
    folder = learned.write(tmp_path / "a", {})
    old = tmp_path / "b" / folder.name
    shutil.copytree(folder, old)
    (old / "text_projection.npy").unlink()
    (old / "image_projection.npy").unlink()
    (old / "met.npy").unlink()
    fields = json.loads((folder / "manifest.json").read_text())
    files = {name: digest for name, digest in fields["files"].items() if "projection" not in name and name != "met.npy"}
    first = {name: value for name, value in fields.items() if name != "encoders"} | {"format": 1, "files": files}
    (old / "manifest.json").write_text(json.dumps(first))
    model = ServingModel(Release.open(old))
    assert model.release.met.all(), "of those before format 3 nothing says otherwise"
    store = ItemStore(1)
    for item in (*seen, *twins(unmet)):
        store.upsert(item)
    model.sync(store)
    before = model.vectors.copy()
    arrive(model, store, twins(unmet), cache)
    assert np.array_equal(model.vectors, before)
    both = store.row_of("twin-both")
    alone = model._graphs.item(store.text[[both]], *(np.zeros((1, w), np.float32) for w in (*widths_of(model.release), 2)))
    assert model.vectors[both] == pytest.approx(alone[0], abs=1e-6)
    (folder / "manifest.json").write_text(json.dumps({**fields, "format": 1}))
    with pytest.raises(ReleaseRejected, match="are missing or unknown"):
        Release.open(folder)


def test_many_unseen_items_are_taken_in_a_bounded_number_at_a_time(world: World) -> None:
    learned, seen, _, _ = world
    model, store = ServingModel(learned.release()), ItemStore(1)
    many = [Item(f"n{n}", f"thing {n}") for n in range(SYNC_AT_ONCE + 50)]
    for item in (*many, *seen):
        store.upsert(item)
    model.sync(store)
    assert not model.synced(store)
    assert model.vectors[SYNC_AT_ONCE - 1].any()
    assert not model.vectors[SYNC_AT_ONCE].any()
    model.sync(store)
    assert model.synced(store)
    assert np.abs(model.vectors[: len(store)]).sum(axis=1).all()
    assert model.content[store.row_of(seen[0].item_id)].any()


VECTORS = st.lists(
    st.tuples(st.integers(0, 30), st.sampled_from(["a", "b"]), st.none() | st.integers(1, 9), st.booleans()), max_size=40
)


@settings(max_examples=50, deadline=None)
@given(VECTORS)
def test_a_store_holds_the_newest_vector_of_each_item_and_encoder(drawn: list[tuple[int, str, int | None, bool]]) -> None:
    store, expected, touched = VectorStore(), dict[tuple[int, str], int | None](), list[int]()
    for row, encoder, value, gone in drawn:
        if gone:
            store.remove(row)
            expected = {key: v for key, v in expected.items() if key[0] != row}
        else:
            values = None if value is None else np.full(3, value, HALF)
            store.put(row, [ItemVector("text", encoder, b"", values)])
            expected[row, encoder] = value
        touched.append(row)
    rows = np.arange(40)
    for encoder in ("a", "b"):
        found, present = store.read(encoder, rows, 3)
        for row in rows.tolist():
            value = expected.get((row, encoder))
            assert present[row] == (value is not None)
            assert found[row].tolist() == [float(value or 0)] * 3
    assert store.changed(0).tolist() == [r for n, r in enumerate(touched) if r not in touched[n + 1 :]]
    assert not store.read("a", rows, 4)[1].any()


VALUES = st.lists(st.floats(-1, 1, width=16), min_size=1, max_size=9)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["text", "image"]), st.none() | VALUES), max_size=4))
def test_vectors_survive_the_wire(drawn: list[tuple[str, list[float] | None]]) -> None:
    vectors = [ItemVector(m, f"{m}-1", b"x" * 32, None if v is None else np.asarray(v, HALF)) for m, v in drawn]
    item_id, back = vectors_from(decode("item_vectors", encode("item_vectors", vectors_to("ü", vectors)))[0])
    assert item_id == "ü"
    for given_, found in zip(vectors, back, strict=True):
        assert (found.modality, found.encoder, found.content_sha256) == (given_.modality, given_.encoder, b"x" * 32)
        assert (found.values is None) == (given_.values is None)
        assert found.values is None or np.array_equal(found.values, given_.values)  # type: ignore[arg-type]
    marks = [fingerprint((v.modality, v.encoder, v.content_sha256) for v in way) for way in (vectors, vectors[::-1])]
    assert marks[0] == marks[1], "the order says nothing"


@pytest.mark.parametrize("values", [b"\x00", np.asarray([np.inf], HALF).tobytes(), b"\x00" * 20_000])
def test_vectors_that_are_none_are_refused(values: bytes) -> None:
    entry = {"modality": "text", "encoder": "e", "content_sha256": b"", "values": values}
    with pytest.raises(BadEvent):
        vectors_from({"item_id": "i", "vectors": [entry]})


def test_fingerprints_change_with_the_content_alone(tmp_path: Path) -> None:
    encoders, item = LiveEncoders(tmp_path), Item("a", "a title", image=str(tmp_path / "a.png"))
    (first,) = encoders.fingerprints([item])
    assert encoders.fingerprints([replace(item, item_id="b", price=3.0, available=False)]) == [first]
    (second,) = encoders.fingerprints([replace(item, title="another")])
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (third,) = encoders.fingerprints([item])
    assert len({first, second, third}) == 3
