"""Catalogue entries whose schema is not known yet are kept in order, while others are applied."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest
from fakes import RegistryServer, registry_server

from agents.broadcast import item_stream as catalogue_module
from agents.broadcast.item_stream import Catalogue
from agents.metrics import Metrics
from models.items.store import ItemStore
from schemas.codec import encode, schema_text
from schemas.records import Item
from schemas.registry import ConfluentRegistry
from streams.kafka.chunks import Chunk


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry_server(schemas=[schema_text("item"), "nonsense"], mood="500") as running:
        yield running


def entry(item_id: str, title: str, schema_id: int | None = None) -> tuple[bytes, bytes | None]:
    value = encode("item", {**asdict(Item(item_id, title)), "categories": [], "attributes": {}})
    return item_id.encode(), value if schema_id is None else b"\x00" + schema_id.to_bytes(4, "big") + value[10:]


def chunk(*records: tuple[bytes, bytes | None]) -> Chunk:
    keys, values = [key for key, _ in records], [value for _, value in records]
    return Chunk("items", 0, range(len(records)), keys, values, [0] * len(records), [()] * len(records))


def titles(store: ItemStore) -> dict[str, str]:
    return {item.item_id: item.title for item in store.items}


async def healed(catalogue: Catalogue, server: RegistryServer) -> None:
    server.mood = "sound"
    async with asyncio.timeout(60):
        await asyncio.gather(*catalogue._waiting.values())


async def test_what_waits_is_applied_when_the_registry_answers_unless_a_newer_entry_came(server: RegistryServer) -> None:
    registry = ConfluentRegistry(server.url, wait_s=0.05, first_retry_s=0.02)
    store, metrics = ItemStore(), Metrics()
    catalogue = Catalogue(store, metrics, registry)
    await catalogue.on_items(
        chunk(
            entry("a", "waits", 1),
            entry("b", "old", 1),
            entry("c", "plain"),
            entry("d", "gone", 1),
            entry("e", "first", 1),
            entry("f", "odd", 2),
            entry("g", "none such", 99),
            entry("b", "new"),
            (b"d", None),
            entry("e", "second", 1),
        )
    )
    assert titles(store) == {"b": "new", "c": "plain"}
    assert metrics.items_waiting.value() == 4
    await healed(catalogue, server)
    assert titles(store) == {"a": "waits", "b": "new", "c": "plain", "e": "second"}
    assert metrics.items.value(outcome="rejected", code="unknown_schema") == 2
    assert (metrics.items_waiting.value(), catalogue._kept_bytes, catalogue._waiting) == (0, 0, {})
    registry.close()


async def test_what_waits_is_bounded(server: RegistryServer, monkeypatch: pytest.MonkeyPatch) -> None:
    one: Any = entry("i0", "x" * 100, 1)[1]
    monkeypatch.setattr(catalogue_module, "KEPT_BYTES", 3 * len(one) + 10)
    registry = ConfluentRegistry(server.url, wait_s=0.05, first_retry_s=0.02)
    store, metrics = ItemStore(), Metrics()
    catalogue = Catalogue(store, metrics, registry)
    await catalogue.on_items(chunk(*[entry(f"i{n}", "x" * 100, 1) for n in range(5)]))
    assert metrics.items.value(outcome="rejected", code="registry_unavailable") == 2
    await healed(catalogue, server)
    assert set(titles(store)) == {"i0", "i1", "i2"}
    registry.close()


async def test_an_entry_under_another_key_is_taken_and_counted() -> None:
    store, metrics = ItemStore(), Metrics()
    await Catalogue(store, metrics).on_items(chunk((b"other", entry("a", "t")[1])))
    assert titles(store) == {"a": "t"}
    assert metrics.items_under_another_key.value() == 1
