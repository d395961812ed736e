"""The slot follows the rules topic; if a set is refused, the old one keeps serving. A worker's answers about rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agents.broadcast.rules import Rules
from agents.metrics import Metrics
from agents.wiring import create_app
from models.items.store import ItemStore
from models.pipeline.rules.book import RuleSlot
from schemas.records import Item
from schemas.rules import FORMAT, encode_rules, rules_from
from schemas.settings import Settings
from streams.kafka.chunks import Chunk
from streams.kafka.rules import SERVING


def document(version: int, **more: Any) -> bytes:
    rule = {"name": "cheap", "kind": "boost", "factor": 2, "where": {"price_to": 5}, **more}
    return encode_rules(rules_from({"version": version, "rules": [rule]}))


def chunk(*values: bytes | None, key: bytes = SERVING.encode()) -> Chunk:
    n = len(values)
    return Chunk("riffle.rules", 0, range(n), [key] * n, values, [0] * n, [()] * n)


def made() -> tuple[Rules, RuleSlot, ItemStore, Metrics]:
    items, slot, metrics = ItemStore(1), RuleSlot(), Metrics()
    for n in range(10):
        items.upsert(Item(f"i{n}", price=float(n)))
    return Rules(slot, items, metrics), slot, items, metrics


async def test_the_newest_set_serves_and_an_empty_value_removes_it() -> None:
    rules, slot, items, metrics = made()
    await rules.on_rules(chunk(document(1), document(2)))
    await rules.on_rules(chunk(document(3), key=b"another"))
    assert slot.version == 2
    assert slot.current is not None
    assert slot.current.matched(0) == [6]
    items.upsert(Item("i10", price=1.0))
    await rules.settle()
    assert slot.current.matched(0) == [7]
    await rules.on_rules(chunk(None))
    assert slot.version == 0
    await rules.settle()
    assert [metrics.rule_sets.value(outcome=outcome) for outcome in ("applied", "cleared", "refused")] == [1, 1, 0]


async def test_a_newer_format_or_bad_rules_are_counted_and_leave_the_old_set() -> None:
    rules, slot, _, metrics = made()
    newer = json.dumps({"format": FORMAT + 1, "rules": []}).encode()
    await rules.on_rules(chunk(document(4), newer))
    assert slot.version == 4, "read at the start together with what an older worker knows"
    assert rules.refused is not None
    assert rules.refused.code == "newer_format"
    await rules.on_rules(chunk(newer))
    await rules.on_rules(chunk(b"\xff", b"{}"))
    assert slot.version == 4
    assert metrics.rule_sets.value(outcome="refused", code="newer_format") == 2
    assert metrics.rule_sets.value(outcome="refused", code="not_json") == 1
    assert metrics.rule_sets.value(outcome="refused", code="missing_field") == 1
    await rules.on_rules(chunk(document(5)))
    assert slot.version == 5
    assert [rules.refused] == [None]


async def test_a_worker_shows_what_serves_and_counts_it(tmp_path: Path) -> None:
    parts = create_app(Settings(home=tmp_path)).parts
    view = parts.service._view
    for n in range(10):
        view.items.upsert(Item(f"i{n}", price=float(n)))
    assert parts.service.rules() == {"format": FORMAT, "version": 0, "rules": [], "expired": 0, "refused": None}
    await parts.rules.on_rules(chunk(document(7, until=5), b"{}"))
    shown = parts.service.rules()
    assert (shown["version"], shown["expired"], shown["refused"]["code"]) == (7, 1, "missing_field")
    assert [(rule["name"], rule["state"], rule["matches"]) for rule in shown["rules"]] == [("cheap", "expired", 6)]
    counted = await parts.service.preview_rules(rules_from({"rules": []}), None)
    assert (counted["rules"], counted["serving"], counted["proposed"]) == ([], None, None)
    view.pipeline.counters["pin", "unknown"] = 3
    text = parts.service.render_metrics()
    assert "riffle_rules_version 7.0" in text
    assert 'riffle_rules{state="expired"} 1.0' in text
    assert 'riffle_rules{state="live"} 0.0' in text
    assert 'riffle_rules_pins_skipped{reason="unknown"} 3.0' in text
