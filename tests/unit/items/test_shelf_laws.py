"""A store on a shelf, written and found again at any moment, holds what a plain dictionary holds; damage is refused."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.broadcast.item_stream import Catalogue
from agents.broadcast.rules import book_of
from agents.broadcast.shelves import Shelves
from agents.metrics import Metrics
from models.items import shelf
from models.items.mapped import Column, Mapped, open_folder, write_folder
from models.items.shelf import BY_ROW, Shelving, newest, open_shelf, place
from models.items.store import ItemStore
from models.items.words import text_vector
from models.pipeline.slot import ModelSlot
from models.state.rows import ItemStatRow
from schemas.codec import encode
from schemas.errors import StoreCorrupt
from schemas.records import Item
from schemas.rules import rules_from
from streams.kafka.chunks import Chunk

NOW = 1_000
NAMES = [f"item {n}" for n in range(8)]
ENTRY = st.tuples(st.just("put"), st.sampled_from(NAMES), st.integers(0, 3), st.booleans())
STEP = st.one_of(
    ENTRY,
    ENTRY,
    st.tuples(st.just("object"), st.sampled_from(NAMES), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("withdraw"), st.sampled_from(NAMES)),
    st.tuples(st.just("count"), st.sampled_from(NAMES), st.integers(1, 9)),
    st.tuples(st.just("event"), st.sampled_from(["stranger", *NAMES])),
    st.just(("shelve",)),
    st.tuples(st.just("restart"), st.integers(1, 9)),
)


def entry(name: str, version: int, available: bool) -> Item:
    published = None if version == 0 else NOW - 1 + version
    names = tuple(f"c{version + n}" for n in range(version))
    return Item(
        name, f"title {version}", "some words", names, None, 1.5 * version or None, available, published, {"a": str(version)}
    )


def find_shelf(root: Path, store: ItemStore) -> Mapped | None:
    """Put the store on the newest shelf, if there is one."""
    folder = newest(root)
    return None if folder is None else place(folder, store)


def record(item: Item) -> bytes:
    fields = {name: getattr(item, name) for name in Item.__dataclass_fields__}
    return encode("item", {**fields, "categories": list(item.categories), "attributes": dict(item.attributes)})


def read(store: ItemStore, records: Sequence[tuple[str, bytes | None]], size: int = 3) -> None:
    """Read records of the items topic in chunks of a size."""

    async def all_chunks() -> None:
        catalogue = Catalogue(store, Metrics())
        for start in range(0, len(records), size):
            part = records[start : start + size]
            keys, values = [name.encode() for name, _ in part], [value for _, value in part]
            await catalogue.on_items(Chunk("items", 0, range(len(part)), keys, values, [0] * len(part), [()] * len(part)))

    asyncio.run(all_chunks())


class Plain:
    """What the topics say, in dictionaries."""

    def __init__(self) -> None:
        self.topic: dict[str, Item] = {}
        self.objects: set[str] = set()
        "Items that come without a record in single-object encoding."
        self.counts: dict[str, int] = {}

    def records(self) -> list[tuple[str, bytes | None]]:
        return [(name, record(item)) for name, item in self.topic.items() if name not in self.objects]


def count(store: ItemStore, name: str, n: int) -> None:
    store.set_statistics(name, 0, ItemStatRow({"view": n}, 0.0, 0, float(n), NOW, NOW))


def check(store: ItemStore, plain: Plain) -> None:
    """Compare the store with the dictionaries."""
    rows = {name: store.row_of(name) for name in NAMES}
    assert store.rows_of(NAMES).tolist() == list(rows.values())
    eligible = store.eligible(NOW)
    assert len(eligible) == len(store) == len(store.ids)
    for name, row in rows.items():
        item = plain.topic.get(name)
        if row < 0:
            assert item is None
            continue
        assert store.ids[row] == name
        assert store.items[row] == item
        assert store.listed[row] == (item is not None)
        assert store.available[row] == (item is not None and item.available)
        assert eligible[row] == (item is not None and item.available and (item.published_at or 0) <= NOW)
        assert store.events[row, 0] == store.all_events[row] == plain.counts.get(name, 0)
        if item is not None:
            named = [store.category_names[c] for c in store.category_ids[row].tolist() if c >= 0]
            assert named == list(item.categories)
            assert store.category_rows(item.categories).tolist() == store.category_ids[row, : len(named)].tolist()
            assert np.isnan(store.price[row]) if item.price is None else store.price[row] == np.float32(item.price)
            assert np.array_equal(store.text[row], text_vector(item))
    assert sorted(item.item_id for item in store.items if item) == sorted(plain.topic)


@settings(max_examples=60, deadline=None)
@given(st.lists(STEP, max_size=40))
def test_a_store_on_a_shelf_equals_a_dictionary(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    with tempfile.TemporaryDirectory() as folder:
        root, store, plain = Path(folder), ItemStore(1, capacity=2), Plain()
        for step in steps:
            match step:
                case ("put", name, version, available):
                    plain.topic[name] = entry(name, version, available)
                    plain.objects.discard(name)
                    read(store, [(name, record(plain.topic[name]))])
                case ("object", name, version, available):
                    plain.topic[name] = entry(name, version, available)
                    plain.objects.add(name)
                    store.upsert(plain.topic[name])
                case ("withdraw", name):
                    plain.topic.pop(name, None)
                    plain.objects.discard(name)
                    read(store, [(name, None)])
                case ("count", name, n):
                    plain.counts[name] = n
                    count(store, name, n)
                case ("event", name):
                    store.row_for(name)
                case ("shelve",) if len(store):
                    shelving = Shelving.begin(store)
                    shelving.finish(open_folder(shelving.write(root)))
                case ("restart", size):
                    store = ItemStore(1, capacity=2)
                    find_shelf(root, store)
                    assert not store.listed.any(), "nothing is in the catalogue before its record was read"
                    read(store, plain.records(), size)
                    for name in sorted(plain.objects):
                        store.upsert(plain.topic[name])
                    for name, n in plain.counts.items():
                        count(store, name, n)
            check(store, plain)


@settings(max_examples=30, deadline=None)
@given(st.lists(ENTRY, min_size=1, max_size=10), st.lists(ENTRY, max_size=10), st.lists(ENTRY, max_size=10))
def test_items_that_change_while_a_shelf_is_written_are_read_from_their_records(
    before: list[tuple[str, str, int, bool]], during: list[tuple[str, str, int, bool]], after: list[tuple[str, str, int, bool]]
) -> None:
    def put(entries: list[tuple[str, str, int, bool]]) -> None:
        for _, name, version, available in entries:
            plain.topic[name] = entry(name, version, available)
            read(store, [(name, record(plain.topic[name]))])

    with tempfile.TemporaryDirectory() as folder:
        store, plain, other = ItemStore(1, capacity=2), Plain(), ItemStore(1)
        put(before)
        shelving = Shelving.begin(store)
        put(during)
        written = shelving.write(Path(folder))
        put(after)
        shelving.finish(open_folder(written))
        check(store, plain)
        find_shelf(Path(folder), other)
        read(other, plain.records())
        check(other, plain)


def test_a_category_that_is_added_while_a_shelf_is_written_does_not_damage_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*args: Any) -> Path:
        item = replace(entry(NAMES[0], 1, True), categories=("another",))
        plain.topic[item.item_id] = item
        read(store, [(item.item_id, record(item))])
        return write_folder(*args)

    plain, store, other = Plain(), ItemStore(1), ItemStore(1)
    plain.topic = {name: entry(name, 1, True) for name in NAMES}
    read(store, plain.records())
    monkeypatch.setattr(shelf, "write_folder", late)
    shelving = Shelving.begin(store)
    shelving.finish(open_shelf(shelving.write(tmp_path)))
    check(store, plain)
    find_shelf(tmp_path, other)
    read(other, plain.records())
    check(other, plain)


def test_an_unchanged_catalogue_is_not_decoded_again_and_no_page_of_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, store = Plain(), ItemStore(1)
    plain.topic = {name: entry(name, n % 4, True) for n, name in enumerate(NAMES)}
    read(store, plain.records())
    shelving = Shelving.begin(store)
    shelving.write(tmp_path)
    other, decoded = ItemStore(1), list[str]()
    mapped = find_shelf(tmp_path, other)
    assert mapped is not None
    monkeypatch.setattr(ItemStore, "upsert", lambda _self, item, _record=b"": decoded.append(item.item_id))
    read(other, plain.records())
    assert decoded == []
    check(other, plain)
    for name in BY_ROW:
        assert getattr(other, name) is mapped.arrays[name], f"{name} is a copy"
    for name, column in mapped.arrays.items():
        assert np.array_equal(column, np.load(mapped.folder / f"{name}.npy"), equal_nan=column.dtype.kind == "f"), name
    plain.topic[NAMES[0]] = entry(NAMES[0], 3, False)
    read(other, plain.records())
    assert decoded == [NAMES[0]], "a changed record is decoded"


@settings(max_examples=30, deadline=None)
@given(st.lists(ENTRY, min_size=1, max_size=8), st.lists(ENTRY, max_size=4), st.integers(0, 3))
def test_rules_that_are_read_before_the_items_of_a_shelf_match_them(
    before: list[tuple[str, str, int, bool]], after: list[tuple[str, str, int, bool]], early: int
) -> None:
    boosts = [{"name": f"r{a}", "kind": "boost", "factor": 2.0, "where": {"attributes": {"a": str(a)}}} for a in range(4)]
    rules = rules_from({"version": 1, "rules": boosts})
    with tempfile.TemporaryDirectory() as folder:
        writer, plain, store = ItemStore(1), Plain(), ItemStore(1)
        plain.topic = {name: entry(name, version, True) for _, name, version, _ in before}
        read(writer, plain.records())
        Shelving.begin(writer).write(Path(folder))
        plain.topic |= {name: entry(name, version, True) for _, name, version, _ in after}
        find_shelf(Path(folder), store)
        read(store, plain.records()[:early])
        book = asyncio.run(book_of(rules, store))
        read(store, plain.records())
        expected = [sum(item.attributes["a"] == str(a) for item in plain.topic.values()) for a in range(4)]
        assert book.matched(NOW) == asyncio.run(book_of(rules, store)).matched(NOW) == expected


# ---- several workers of a machine


async def test_workers_of_one_machine_do_not_replace_each_others_shelf(tmp_path: Path) -> None:
    plain, metrics, stores = Plain(), Metrics(), [ItemStore(1), ItemStore(1)]
    workers = [Shelves(tmp_path, store, ModelSlot(), metrics, 1) for store in stores]
    for worker in workers:
        worker.find()

    async def renewed(kind: str = "items") -> float:
        before = metrics.shelves.value(kind=kind, outcome="written")
        for worker in workers * 3:
            await worker.renew()
        return metrics.shelves.value(kind=kind, outcome="written") - before

    plain.topic = {name: entry(name, 1, True) for name in NAMES}
    await asyncio.to_thread(read, stores[0], plain.records())
    await asyncio.to_thread(read, stores[1], plain.records()[::-1])
    assert await renewed() == 1
    plain.topic |= {name: entry(name, 2, True) for name in NAMES[:2]}
    for store in stores:
        await asyncio.to_thread(read, store, plain.records())
    assert await renewed() == 1
    assert len(workers[0]._folders("items")) == 1
    shutil.rmtree(newest(tmp_path) or tmp_path)
    assert await renewed() == 1, "a removed one is written again"
    for store in stores:
        check(store, plain)


def test_what_a_killed_write_left_is_removed_and_a_stopped_one_leaves_nothing(tmp_path: Path) -> None:
    left, store = tmp_path / ".part-killed", ItemStore(1)
    left.mkdir()
    read(store, [(name, record(entry(name, 1, True))) for name in NAMES])
    with pytest.raises(InterruptedError):
        Shelving.begin(store).write(tmp_path, lambda: True)
    assert [path for path in tmp_path.glob(".part-*") if path != left] == []
    asyncio.run(Shelves(tmp_path, store, ModelSlot(), Metrics(), 1).renew())
    assert not left.exists()
    assert newest(tmp_path) is not None


async def test_a_catalogue_without_records_is_not_put_on_a_shelf(tmp_path: Path) -> None:
    store, metrics = ItemStore(1), Metrics()
    for name in NAMES:
        store.upsert(entry(name, 1, True))
    await Shelves(tmp_path, store, ModelSlot(), metrics, 1).renew()
    assert newest(tmp_path) is None


def test_a_damaged_shelf_that_cannot_be_removed_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with shelved(tmp_path) as folder:
        truncated(folder)
        monkeypatch.setattr(shutil, "rmtree", lambda _folder, ignore_errors=False: None)
        store, metrics = ItemStore(1), Metrics()
        shelves = Shelves(tmp_path, store, ModelSlot(), metrics, 1)
        shelves.find()
        assert (len(store), metrics.shelves.value(kind="items", outcome="refused")) == (0, 1)


# ---- refused


@contextmanager
def shelved(root: Path) -> Iterator[Path]:
    store = ItemStore(1)
    read(store, [(name, record(entry(name, 1, True))) for name in NAMES])
    yield Shelving.begin(store).write(root)


def truncated(folder: Path) -> None:
    data = (folder / "text.npy").read_bytes()
    (folder / "text.npy").write_bytes(data[: len(data) // 2])


def changed(folder: Path) -> None:
    data = bytearray((folder / "bloom.npy").read_bytes())
    data[-1] ^= 1
    (folder / "bloom.npy").write_bytes(data)


def missing(folder: Path) -> None:
    (folder / "ids.npy").unlink()


def other_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["facts"]["items"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


@pytest.mark.parametrize("damage", [truncated, changed, missing, other_manifest, no_manifest])
def test_a_damaged_shelf_is_refused_before_serving_and_removed(tmp_path: Path, damage: object) -> None:
    with shelved(tmp_path) as folder:
        damage(folder)  # type: ignore[operator]
        store, metrics = ItemStore(1), Metrics()
        with pytest.raises(StoreCorrupt, match="cannot be used"):
            find_shelf(tmp_path, store)
        assert len(store) == 0
        Shelves(tmp_path, store, ModelSlot(), metrics, 1).find()
        assert metrics.shelves.value(kind="items", outcome="refused") == 1
        assert not folder.exists()
        read(store, [(name, record(entry(name, 1, True))) for name in NAMES])
        assert store.available.sum() == len(NAMES)


def forged(root: Path, name: str, column: np.ndarray) -> None:
    """Write the newest shelf again, with a manifest that fits, but with another column."""
    with shelved(root) as folder:
        mapped = open_folder(folder)
        columns = {**{key: Column(value) for key, value in mapped.arrays.items()}, name: Column(column)}
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        write_folder(root, "items", mapped.facts, columns)


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("category_ids", np.full((1_100, 8), 99, np.int32)),
        ("index_rows", np.full(4_096, 77, np.int32)),
        ("id_starts", np.arange(9, dtype=np.int64)[::-1].copy()),
        ("price", np.zeros(1_100)),
        ("text", np.ones((1_100, 128), np.float32)),
        ("text", np.ones((2, 128), np.float32)),
    ],
)
def test_a_shelf_whose_arrays_do_not_fit_or_were_computed_otherwise_is_refused(
    tmp_path: Path,
    name: str,
    column: np.ndarray,
) -> None:
    forged(tmp_path, name, column)
    with pytest.raises(StoreCorrupt, match="cannot be used"):
        find_shelf(tmp_path, ItemStore(1))


def test_the_stored_format_is_the_one_that_was_recorded(tmp_path: Path) -> None:
    """A change of format must raise `mapped.FORMAT`: a worker with another version would read these bytes."""
    columns = {
        "numbers": Column(np.arange(6, dtype=np.int32).reshape(3, 2), room=1, fill=-1),
        "empty": Column(np.zeros(0, np.uint8)),
    }
    folder = write_folder(tmp_path, "items", {"items": 3}, columns)
    assert folder.name == "items-ccb19249b1374a52"
    data = (folder / "numbers.npy").read_bytes()
    assert data[:8] == b"\x93NUMPY\x01\x00"
    assert np.frombuffer(data[128:], "<i4").tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    assert write_folder(tmp_path, "items", {"items": 3}, columns) == folder, "equal content has an equal name"
    assert open_folder(folder).arrays["empty"].shape == (0,)
