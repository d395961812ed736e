"""A release that maps what another worker wrote of a shelf's rows answers as one that computed it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from agents.broadcast.shelves import Shelves
from agents.metrics import Metrics
from models.items.mapped import Column, Mapped, open_folder, write_folder
from models.items.shelf import Shelving, newest, place
from models.items.store import ItemStore
from models.pipeline.clock import after_all
from models.pipeline.pipeline import CandidatePipeline
from models.pipeline.slot import ModelSlot
from models.pipeline.ties import Ties
from models.release.bound import find_bound, open_bound, write_bound
from models.release.nearest import IndexSettings
from models.release.release import Release
from models.release.rows import content_width
from models.release.serving import ServingModel, prepare
from models.tables.users import UserTable
from schemas.codec import encode
from schemas.columns import EventColumns
from schemas.errors import StoreCorrupt
from schemas.records import Interaction, Item, Request

ALL = IndexSettings(exact_below=1, recall=1.0, depth=20)
"An index over the smallest catalogue, which finds everything."


def find_shelf(root: Path, store: ItemStore) -> Mapped | None:
    """Put the store on the newest shelf, if there is one."""
    folder = newest(root)
    return None if folder is None else place(folder, store)


def record(item: Item) -> bytes:
    fields = {name: getattr(item, name) for name in Item.__dataclass_fields__}
    return encode("item", {**fields, "categories": list(item.categories), "attributes": dict(item.attributes)})


def catalogue(release: Release) -> list[Item]:
    names = [*release.item_ids[::-1], "new 1", "new 2"]
    return [Item(name, f"a {('red', 'blue')[n % 2]} thing", categories=(f"c{n % 3}",)) for n, name in enumerate(names)]


def synced(model: ServingModel, store: ItemStore) -> ServingModel:
    while not model.synced(store):
        model.sync(store)
    return model


def listed(store: ItemStore, items: Sequence[Item]) -> ItemStore:
    records = [record(item) for item in items]
    rows = store.unchanged([item.item_id.encode() for item in items], records)
    store.list_again(rows[rows >= 0])
    for item, value, row in zip(items, records, rows.tolist(), strict=True):
        if row < 0:
            store.upsert(item, value)
    return store


def answers(model: ServingModel, store: ItemStore) -> list[object]:
    """Answer requests of users with histories, and search by all items' vectors."""
    slot = ModelSlot()
    slot.swap(model)
    users = UserTable(store, lambda keys: [None] * len(keys))
    names = model.release.item_ids
    users.apply(
        EventColumns.of(
            [Interaction(f"e{n}", f"u{n % 5}", names[n * 7 % len(names)], n + 1, "like") for n in range(30)], range(30)
        )
    )
    requests = [Request(f"r{n}", f"u{n}", k=10) for n in range(6)]
    pipeline = CandidatePipeline(store, slot=slot, clock=after_all)
    slates = pipeline.run(requests, users.columns([request.user_id for request in requests]), [None] * len(requests))
    found: list[object] = [(slate.degraded, [(item.item_id, item.score) for item in slate.items]) for slate in slates]
    rows = store.rows_of([item.item_id for item in catalogue(model.release)])
    eligible, ties = store.eligible(0), Ties(store.hashes, np.arange(4, dtype=np.uint64))
    for near in (
        model.nearest(model.vectors[rows[:4]], eligible, 7, ties),
        model.alike(model.content[rows[:4]], eligible, 7, ties, 1e-4),
    ):
        found += [([store.ids[row] for row in near.of_query(q)[0].tolist()], near.of_query(q)[1].tolist()) for q in range(4)]
    return found


@pytest.fixture
def shelf(folder: Path, tmp_path: Path) -> Path:
    """A folder with a shelf."""
    store = listed(ItemStore(1), catalogue(Release.open(folder)))
    Shelving.begin(store).write(tmp_path / "shelves")
    return tmp_path / "shelves"


@pytest.mark.parametrize("index", [IndexSettings(), ALL])
def test_mapped_and_computed_releases_give_the_same_answers(folder: Path, shelf: Path, index: IndexSettings) -> None:
    release = Release.open(folder)
    items = catalogue(release)
    plain = listed(ItemStore(1), items)
    computed = synced(ServingModel(release, index=index), plain)
    expected = answers(computed, plain)

    writer = ItemStore(1)
    find_shelf(shelf, writer)
    listed(writer, items)
    writing = synced(ServingModel(release, index=index), writer)
    if not writing.rows.indexed:
        writing.rows.index_content()()
    assert answers(writing, writer) == expected
    found = writing.rows.begin_bound(writer)
    assert found is not None
    at = write_bound(shelf, release.name, writer.shelf, 10, found)
    writing.rows.share(open_bound(at, release, content_width(release)))
    assert answers(writing, writer) == expected, "the writer maps it, too"

    reader = ItemStore(1)
    find_shelf(shelf, reader)
    listed(reader, items)
    bound = open_bound(at, release, content_width(release))
    mapped = ServingModel(release, index=index, bound=bound, changes=reader.held_changes)
    assert mapped.vectors is bound.columns["vectors"], "nothing is copied"
    assert mapped.synced(reader), "and nothing is computed"
    assert answers(mapped, reader) == expected

    # from here on the catalogue changes, in all three stores alike
    changed = [Item(items[0].item_id, "something else", categories=("c9",)), Item("new 3", "a green thing")]
    for model, store in ((computed, plain), (writing, writer), (mapped, reader)):
        listed(store, changed)
        store.remove(items[3].item_id)
        synced(model, store)
    assert answers(computed, plain) == answers(writing, writer) == answers(mapped, reader) != expected


async def test_one_worker_writes_and_the_next_one_maps(folder: Path, tmp_path: Path) -> None:
    release, metrics = Release.open(folder), Metrics()
    items, slot = listed(ItemStore(1), catalogue(release)), ModelSlot()
    model = synced(prepare(folder), items)
    slot.swap(model)
    expected = answers(model, items)
    shelves = Shelves(tmp_path / "shelves", items, slot, metrics, least=1)
    shelves.find()
    assert shelves.held(release.name) is None
    await shelves.renew()
    assert answers(model, items) == expected, "a worker that begins to share its memory answers as before"
    assert items.shelf
    await shelves.renew()
    assert [metrics.shelves.value(kind=kind, outcome="written") for kind in ("items", "model")] == [1, 1], "once"

    other, others = ItemStore(1), Metrics()
    second = Shelves(tmp_path / "shelves", other, ModelSlot(), others, least=1)
    second.find()
    listed(other, catalogue(release))
    held = second.held(release.name)
    assert held is not None
    mapped = synced(prepare(folder, None, held), other)
    assert answers(mapped, other) == expected
    earlier = expected

    # an item more than a twentieth: the shelf is written again, and the old one is removed
    listed(items, [Item(f"more {n}", "a thing") for n in range(len(items) // 10)])
    synced(model, items)
    expected, old = answers(model, items), items.shelf
    await shelves.renew()
    assert items.shelf != old
    assert [path.name for path in (tmp_path / "shelves").glob("items-*")] == [items.shelf]
    assert answers(model, items) == expected
    assert answers(mapped, other) == earlier, "who has mapped the old one keeps it"


async def test_what_another_release_knows_of_the_same_shelf_is_kept(folder: Path, tmp_path: Path) -> None:
    release, slot, items = Release.open(folder), ModelSlot(), ItemStore(1)
    listed(items, catalogue(release))
    shelves = Shelves(tmp_path, items, slot, Metrics(), least=1)
    await shelves.renew()
    kept = write_folder(tmp_path, "model", {"release": "other", "shelf": items.shelf}, {"x": Column(np.zeros(1))})
    gone = write_folder(tmp_path, "model", {"release": "other", "shelf": "items-0"}, {"x": Column(np.zeros(1))})
    slot.swap(synced(prepare(folder), items))
    await shelves.renew()
    assert find_bound(tmp_path, release.name, items.shelf) is not None
    assert kept.exists()
    assert not gone.exists(), "its shelf is gone"


@pytest.mark.parametrize("paused", [0, 1])
def test_a_batch_that_is_under_way_is_answered_as_if_nothing_was_swapped(folder: Path, tmp_path: Path, paused: int) -> None:
    release, slot = Release.open(folder), ModelSlot()
    store = listed(ItemStore(1), catalogue(release))
    model = synced(ServingModel(release, index=ALL), store)
    slot.swap(model)
    model.rows.index_content()()
    users = UserTable(store, lambda keys: [None] * len(keys))
    events = [Interaction(f"e{n}", f"u{n % 3}", release.item_ids[n], n + 1, "like") for n in range(12)]
    users.apply(EventColumns.of(events, range(12)))
    requests = [Request(f"r{n}", f"u{n}", k=10) for n in range(3)]
    rows = users.columns([request.user_id for request in requests])
    pipeline = CandidatePipeline(store, slot=slot, clock=after_all)
    expected = pipeline.run(requests, rows, [None] * 3)

    def swap() -> None:
        shelving = Shelving.begin(store)
        shelving.finish(open_folder(shelving.write(tmp_path / "shelves")))
        found = model.rows.begin_bound(store)
        assert found is not None
        at = write_bound(tmp_path / "shelves", release.name, store.shelf, len(store.available) - found.size, found)
        model.rows.share(open_bound(at, release, content_width(release)))
        model.rows.index_content()()
        slot.swap(synced(prepare(folder, None, (at, store.held_changes)), store))

    steps, pauses, slates = pipeline.steps(requests, rows, [None] * 3), 0, None
    try:
        work = next(steps)
        while True:
            if pauses == paused:
                swap()
            pauses += 1
            work = steps.send(work())
    except StopIteration as done:
        slates = done.value
    assert pauses == 2, "the graphs of users and of the ranker"
    told = [
        [(slate.degraded, [(item.item_id, item.score) for item in slate.items]) for slate in of] for of in (slates, expected)
    ]
    assert told[0] == told[1]
    assert pipeline.slot.current is not model


@pytest.mark.parametrize("damage", ["truncated", "vectors", "number_of_row", "stale"])
def test_what_does_not_fit_is_refused_before_it_serves(folder: Path, shelf: Path, damage: str) -> None:
    release, store = Release.open(folder), ItemStore(1)
    find_shelf(shelf, store)
    listed(store, catalogue(release))
    found = synced(ServingModel(release), store).rows.begin_bound(store)
    assert found is not None
    at = write_bound(shelf, release.name, store.shelf, 10, found)
    if damage == "truncated":
        path = at / "content.npy"
        path.write_bytes(path.read_bytes()[:-4_000])
    else:
        made = open_folder(at)
        wrong = {"vectors": made.arrays["vectors"][:, 1:], "number_of_row": made.arrays["number_of_row"] + 10_000}
        wrong["stale"] = np.asarray([len(store)], np.int64)
        columns = {
            name: Column(np.ascontiguousarray(wrong.get(name) if name == damage else array))
            for name, array in made.arrays.items()
        }
        at = write_folder(shelf, "model", made.facts, columns)
    with pytest.raises(StoreCorrupt, match=r"cannot be used|does not fit"):
        prepare(folder, None, (at, store.held_changes))


def test_only_what_the_same_release_knew_of_the_same_shelf_is_found(folder: Path, shelf: Path) -> None:
    release, store = Release.open(folder), ItemStore(1)
    find_shelf(shelf, store)
    listed(store, catalogue(release))
    found = synced(ServingModel(release), store).rows.begin_bound(store)
    assert found is not None
    at = write_bound(shelf, release.name, store.shelf, 10, found)
    (shelf / "model-unreadable").mkdir()
    (shelf / "model-unreadable" / "manifest.json").write_text(json.dumps([]))
    assert find_bound(shelf, release.name, store.shelf) == at
    assert find_bound(shelf, "another", store.shelf) is None
    assert find_bound(shelf, release.name, "items-0") is None
