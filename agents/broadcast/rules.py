"""Merchandising rules in a worker: follows their topic, and swaps a valid set in between two batches."""

from __future__ import annotations

import asyncio
import logging

from agents.metrics import Metrics
from models.items.store import ItemStore
from models.pipeline.rules.book import RuleBook, RuleSlot
from schemas.errors import BadRules
from schemas.rules import RuleSet, decode_rules
from streams.kafka.chunks import Chunk
from streams.kafka.rules import SERVING

__all__ = ["Rules", "book_of"]

log = logging.getLogger(__name__)

AT_ONCE = 2_000
"Number of items that are matched between two turns of the event loop."


class Rules:
    """Keeps the slot at the newest valid rule set. If a set is refused, the old one keeps serving."""

    def __init__(self, slot: RuleSlot, items: ItemStore, metrics: Metrics) -> None:
        self._slot = slot
        self._items = items
        self._metrics = metrics
        self.refused: BadRules | None = None
        "Why the newest set is refused; None if it serves."

    async def on_rules(self, chunk: Chunk) -> None:
        """Serve the newest valid set of a chunk, and count those that are refused; an empty value removes all rules."""
        values = [value for key, value in zip(chunk.keys, chunk.values, strict=True) if key == SERVING.encode()]
        refused = None
        for value in reversed(values):
            try:
                rules = decode_rules(value) if value else None
            except BadRules as exc:
                refused = refused or exc
                self._metrics.rule_sets.add(outcome="refused", code=exc.code)
                log.error("a rule set is refused, an older one keeps serving: %s", exc.message)
                continue
            self._slot.swap(None if rules is None else await book_of(rules, self._items))
            self._metrics.rule_sets.add(outcome="cleared" if rules is None else "applied")
            log.info("serving the rules of version %d", self._slot.version)
            break
        if values:
            self.refused = refused

    async def settle(self) -> None:
        """Match the items that were read after the rules, so that the first batch does not have to."""
        if self._slot.current is not None:
            await _matched(self._slot.current)


async def book_of(rules: RuleSet, items: ItemStore) -> RuleBook:
    """Compare a rule set with the whole catalogue, in steps between which the event loop does other work."""
    book = RuleBook(rules, items)
    await _matched(book)
    return book


async def _matched(book: RuleBook) -> None:
    while not book.refresh(AT_ONCE):  # noqa: ASYNC110 - this loop does the work
        await asyncio.sleep(0)
