"""A rule set over a catalogue: which items each rule matches, kept up to date as items change, and what applies to a batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.items.store import ItemStore
from models.pipeline.batch import Queries
from models.pipeline.rules.applied import AppliedRules, RuleColumns
from models.pipeline.ties import tie_keys
from models.state.kernels.hash_index import SPREAD
from models.state.rows import hash64
from models.units import DAY_MS
from schemas.records import Request
from schemas.rules import Kind, Rule, RuleSet, When

__all__ = ["RuleBook", "RuleSlot"]

GOLDEN = np.uint64(SPREAD)
"2^64 divided by the golden ratio: its multiples are spread evenly."
ALWAYS = np.iinfo(np.int64).min
"Earliest time of publication for a rule without such a condition."


class RuleBook:
    """The rules of a set, with a mask over item rows for each. All access is from the item store's thread."""

    def __init__(self, rules: RuleSet, items: ItemStore) -> None:
        """No item matches before `refresh`."""
        self.rules = rules
        self._items = items
        self._columns = RuleColumns.of(rules.rules)
        self._names = tuple(rule.name for rule in rules.rules)
        self._masks = np.zeros((len(rules.rules), len(items)), np.bool_)
        self._changes = 0
        "Value of the store's `changes` up to which the masks are right."
        self._pins = [pin.item_id for rule in rules.rules for pin in rule.pins]
        self._days = np.asarray([rule.where.published_within_days or 0.0 for rule in rules.rules], np.float64)
        self._whens = [(r, rule.when) for r, rule in enumerate(rules.rules) if rule.when != When()]
        self._attributes, self._listed = _numbered(rules.rules), _by_item(rules.rules)

    def refresh(self, most: int | None = None) -> bool:
        """Match items that were added or changed since the last call, at most `most`; returns whether none is left."""
        items, size = self._items, len(self._items)
        if size > self._masks.shape[1]:
            larger = np.zeros((len(self._masks), max(size, 2 * self._masks.shape[1])), np.bool_)
            larger[:, : self._masks.shape[1]] = self._masks
            self._masks = larger
        if items.changes == self._changes:
            return True
        changed = items.changed[:size]
        rows = np.flatnonzero(changed > self._changes)
        done = most is None or len(rows) <= most
        if not done:
            rows = rows[np.argsort(changed[rows])[:most]]
        self._match(rows)
        self._changes = items.changes if done else int(changed[rows[-1]])
        return done

    def _match(self, rows: NDArray[np.intp]) -> None:
        """Set the masks of some rows."""
        items = self._items
        price, categories = items.price[rows], items.category_ids[rows]
        attributes, named = self._values(rows), self._named(rows)
        for r, rule in enumerate(self.rules.rules):
            where, held = rule.where, np.full(len(rows), rule.kind is not Kind.PIN)
            if where.categories:
                wanted = np.zeros(len(items.category_names) + 1, np.bool_)
                wanted[items.category_rows(where.categories)] = True  # the last entry is that of no category
                held &= wanted[categories].any(axis=1)
            if where.price_from is not None:
                held &= price >= np.float32(where.price_from)
            if where.price_to is not None:
                held &= price <= np.float32(where.price_to)
            for name, values in where.attributes.items():
                numbers = self._attributes[name]
                held &= np.isin(attributes[name], [numbers[value] for value in values])
            if where.items:
                listed = np.zeros(len(rows), np.bool_)
                listed[named.get(r, [])] = True
                held &= listed
            self._masks[r, rows] = held

    def _values(self, rows: NDArray[np.intp]) -> dict[str, NDArray[np.int32]]:
        """Return a number for each row's value of each attribute that a rule names, 0 for values that none names."""
        found: dict[str, NDArray[np.int32]] = {}
        if not self._attributes:
            return found
        # also of items that are not in the catalogue yet, because one that comes back unchanged is not matched again
        entries = [self._items.items.last(row) for row in rows.tolist()]
        for name, numbers in self._attributes.items():
            of = (0 if item is None else numbers.get(item.attributes.get(name, ""), 0) for item in entries)
            found[name] = np.fromiter(of, np.int32, len(entries))
        return found

    def _named(self, rows: NDArray[np.intp]) -> dict[int, list[int]]:
        """Return the indices, within `rows`, of the items that each rule names."""
        found: dict[int, list[int]] = defaultdict(list)
        if self._listed:
            for n, row in enumerate(rows.tolist()):
                for rule in self._listed.get(self._items.ids[row], ()):
                    found[rule].append(n)
        return found

    def applied(self, queries: Queries) -> AppliedRules | None:
        """Return the rules that apply to the batch at its time; None if none applies to any of its queries."""
        now_ms, items, rules = queries.now_ms, self._items, self.rules.rules
        live = np.asarray([rule.live(now_ms) for rule in rules], np.bool_)
        if not live.any():
            return None
        active = np.repeat(live[None, :], len(queries), axis=0)
        for r, when in self._whens:
            if live[r]:
                active[:, r] = [_applies(when, request) for request in queries.requests]
        if not active.any():
            return None
        self.refresh()
        fresh = self._columns.fresh
        with_new = bool(active[:, fresh].any())
        pins = items.rows_of(self._pins)
        salts = np.zeros(len(queries), np.uint64)
        places = np.zeros(active.shape, np.int64)
        if with_new:
            asked = [hash64(f"{request.user_id}\x1f{request.request_id}") for request in queries.requests]
            salts = np.asarray(asked, np.uint64)
            places[:, fresh] = self._places(queries.k, salts)
            places[~active | ~queries.retrieving[:, None]] = 0
        return AppliedRules(
            names=self._names,
            columns=self._columns,
            active=active,
            masks=self._masks,
            since=self._since(now_ms),
            published=items.published_ms,
            events=items.all_events if with_new else np.zeros(len(items.published_ms), np.int64),
            hashes=items.hashes,
            pin_rows=np.where((pins >= 0) & (pins < queries.size) & items.listed[pins], pins, np.int32(-1)).astype(np.int32),
            places=places,
            salts=salts,
        )

    def _places(self, k: NDArray[np.int64], salts: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Return the number of places for new items, by query and rule of `fresh`.

        The fraction of a place that is left is one with that probability, which the salt decides, so that the share is met on
        the whole: 5 % of 10 places are 1 place in every second request.
        """
        fresh = self._columns.fresh
        exact = np.round(k[:, None] * self._columns.share[fresh], 9)
        whole = np.floor(exact)
        # far from the small numbers of places, because the same key would bind a place to the chance of having one
        chance = tie_keys((fresh + 1).astype(np.uint64) * GOLDEN, salts[:, None]) / 2.0**64
        return (whole + (chance < exact - whole)).astype(np.int64)

    def _since(self, now_ms: int) -> NDArray[np.int64]:
        since = np.full(len(self._names), ALWAYS, np.int64)
        bounded = self._days > 0
        # an unknown time of publication, 0, never lies within
        since[bounded] = np.maximum(now_ms - (self._days[bounded] * DAY_MS).astype(np.int64), 1)
        return since

    def matched(self, now_ms: int) -> list[int]:
        """Return the number of items that each rule matches at a time; of a pin, of its items that the catalogue holds."""
        self.refresh()
        items, size = self._items, len(self._items)
        since, listed = self._since(now_ms), items.listed[:size]
        found = []
        for r, rule in enumerate(self.rules.rules):
            if rule.kind is Kind.PIN:
                rows = items.rows_of([pin.item_id for pin in rule.pins])
                found.append(int(items.listed[rows[rows >= 0]].sum()))
                continue
            held = self._masks[r, :size] & listed & (items.published_ms[:size] >= since[r])
            if rule.fewer_than:
                held &= items.all_events[:size] < rule.fewer_than
            found.append(int(held.sum()))
        return found

    def expired(self, now_ms: int) -> int:
        """Return the number of rules that will never apply again."""
        return sum(rule.expired(now_ms) for rule in self.rules.rules)


class RuleSlot:
    """Holds the serving rules, or none. A batch reads `current` once, so that a swap never affects a running batch."""

    def __init__(self) -> None:
        self.current: RuleBook | None = None
        "None without rules: the pipeline then does no work for them."

    @property
    def version(self) -> int:
        """Version of the serving rule set, 0 without one."""
        return 0 if self.current is None else self.current.rules.version

    def swap(self, book: RuleBook | None) -> None:
        """Serve other rules from the next batch on; None: no rules."""
        self.current = book if book is not None and book.rules.rules else None


def _applies(when: When, request: Request) -> bool:
    if when.categories and not set(when.categories) & set(request.categories):
        return False
    return all(request.context.get(name) in values for name, values in when.context.items())


def _numbered(rules: Sequence[Rule]) -> Mapping[str, Mapping[str, int]]:
    """Return a number, from 1, for each value of each attribute that a rule names."""
    found: dict[str, dict[str, int]] = defaultdict(dict)
    for rule in rules:
        for name, values in rule.where.attributes.items():
            for value in values:
                found[name].setdefault(value, len(found[name]) + 1)
    return dict(found)


def _by_item(rules: Sequence[Rule]) -> Mapping[str, list[int]]:
    """Return the rules whose conditions name each item."""
    found: dict[str, list[int]] = defaultdict(list)
    for r, rule in enumerate(rules):
        for item_id in rule.where.items:
            found[item_id].append(r)
    return dict(found)
