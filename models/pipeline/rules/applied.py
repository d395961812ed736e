"""The merchandising rules that apply to one batch, in columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.pipeline.kernels import rules as kernels
from models.pipeline.ragged import Ragged
from schemas.rules import Kind, Rule

__all__ = ["AppliedRules", "RuleColumns"]


@dataclass(frozen=True, slots=True)
class RuleColumns:
    """Numbers of the R rules of a set, in its order. Numbers that a rule's kind does not have are 0."""

    factor: NDArray[np.float64]
    least: NDArray[np.int64]
    first: NDArray[np.int64]
    most: NDArray[np.int64]
    few: NDArray[np.int64]
    "Number of events below which an item is new, 0 for rules that do not ask for new items."
    per: NDArray[np.bool_]
    "Whether a cap counts each first category of its own."
    share: NDArray[np.float64]
    scaling: NDArray[np.int64]
    "Rules that multiply scores."
    requires: NDArray[np.int64]
    "Requirements, those with the earliest last place first."
    caps: NDArray[np.int64]
    fresh: NDArray[np.int64]
    pin_rules: NDArray[np.int64]
    "Rule of each pin `(p,)`."
    pin_positions: NDArray[np.int64]

    @classmethod
    def of(cls, rules: Sequence[Rule]) -> RuleColumns:
        """Write rules as columns."""

        def numbers(name: str) -> NDArray[np.int64]:
            return np.asarray([getattr(rule, name) for rule in rules], np.int64)

        def those(*kinds: Kind) -> NDArray[np.int64]:
            return np.asarray([n for n, rule in enumerate(rules) if rule.kind in kinds], np.int64)

        requires = those(Kind.REQUIRE)
        first = numbers("first")
        pins = [(n, pin.position) for n, rule in enumerate(rules) for pin in rule.pins]
        pinned = np.asarray(pins, np.int64).reshape(-1, 2)
        return cls(
            factor=np.asarray([rule.factor for rule in rules], np.float64),
            least=numbers("least"),
            first=first,
            most=numbers("most"),
            few=numbers("fewer_than"),
            per=np.asarray([rule.per is not None for rule in rules], np.bool_),
            share=np.asarray([rule.share for rule in rules], np.float64),
            scaling=those(Kind.BOOST, Kind.BURY),
            requires=requires[np.argsort(first[requires], kind="stable")],
            caps=those(Kind.CAP),
            fresh=those(Kind.FRESH),
            pin_rules=pinned[:, 0].copy(),
            pin_positions=pinned[:, 1].copy(),
        )


@dataclass(slots=True)
class AppliedRules:
    """The R rules of a set for a batch of q queries, and the columns of the catalogue that they are compared with."""

    names: tuple[str, ...]
    columns: RuleColumns
    active: NDArray[np.bool_]
    "Whether each rule applies to each query `(q, R)`."
    masks: NDArray[np.bool_]
    "Whether each rule matches each item by what does not change with time `(R, rows)`."
    since: NDArray[np.int64]
    "Earliest time of publication (epoch ms) of items that each rule matches `(R,)`."
    published: NDArray[np.int64]
    events: NDArray[np.int64]
    "Number of events of each item; zeros if no rule asks for new items."
    hashes: NDArray[np.uint64]
    pin_rows: NDArray[np.int32]
    "Item row of each pin `(p,)`, -1 if the catalogue does not hold it."
    places: NDArray[np.int64]
    "Number of a slate's places that each rule gives to new items `(q, R)`."
    salts: NDArray[np.uint64]
    "Hash of each query's user and request, which draws the new items and their places `(q,)`."
    placed_by: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    "The rule that placed each item of the slates, in their order, -1 for none. Set by the selection."

    @property
    def scales(self) -> bool:
        """Whether a rule that applies to a query multiplies scores."""
        return bool(self.active[:, self.columns.scaling].any())

    @property
    def selects(self) -> bool:
        """Whether a rule that applies to a query moves items beyond their scores."""
        scaling = np.zeros(self.active.shape[1], np.bool_)
        scaling[self.columns.scaling] = True
        return bool(self.active[:, ~scaling].any())

    def matches(self, rule: int, size: int) -> NDArray[np.bool_]:
        """Return whether a rule matches each of the first `size` items: bool `(size,)`."""
        found: NDArray[np.bool_] = self.masks[rule, :size] & (self.published[:size] >= self.since[rule])
        few = self.columns.few[rule]
        return found & (self.events[:size] < few) if few else found

    def rescaled(
        self, scores: NDArray[np.float32], query_row: NDArray[np.int32], item_row: NDArray[np.int32], starts: NDArray[np.intp]
    ) -> NDArray[np.float32]:
        """Multiply the scores of the n candidates by the factors of the rules that match them: float32 `(n,)`.

        A boost moves a score up and a bury moves it down, whatever its sign: what is multiplied is the distance from a base.
        The base is 0 if all of the query's scores are positive, as a ranker's are; else it lies below the lowest one, by 1 % of
        their range, or by 1 if all are equal.
        """
        columns = self.columns
        factors = kernels.factors(
            query_row, item_row, columns.scaling, self.active, columns.factor, self.masks, self.since, self.published
        )
        found: NDArray[np.float32] = kernels.rescaled(scores, starts, factors)
        return found

    def arranged(
        self, order: Ragged, item_row: NDArray[np.int32], category: NDArray[np.int32], k: NDArray[np.int64]
    ) -> tuple[Ragged, NDArray[np.int64], NDArray[np.int64]]:
        """Arrange slates of at most `k` `(q,)` candidates; see `kernels.rules.arranged`.

        `order`: candidates of each query, best first; `item_row` and `category` (the first one, -1 for none): of each
        candidate. Returns the chosen candidates, the rule that placed each, and the skipped pins of each query `(q, 3)`.
        """
        c = self.columns
        chosen, by, starts, skipped = kernels.arranged(
            order.values.astype(np.int64, copy=False), order.starts, item_row, category, k, self.active, c.pin_rules,
            self.pin_rows, c.pin_positions, c.requires, c.caps, c.fresh, c.least, c.first, c.most, c.per, c.few, self.places,
            self.masks, self.since, self.published, self.events, self.hashes, self.salts,
        )  # fmt: skip
        return Ragged(starts, chosen), by, skipped

    def moved(self, query: int, item_row: int, place: int) -> list[str]:
        """Return the names of the rules that moved an item: those that multiplied its score, and the one that placed it.

        `place`: index of the item among those of all slates of the batch.
        """
        columns = self.columns
        found = [
            r
            for r in columns.scaling.tolist()
            if self.active[query, r] and self.masks[r, item_row] and self.published[item_row] >= self.since[r]
        ]
        if len(self.placed_by) and self.placed_by[place] >= 0:
            found.append(int(self.placed_by[place]))
        return [self.names[r] for r in found]
