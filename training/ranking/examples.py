"""Training examples of the ranker: queries with their candidates, split into training and calibration."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from models.features.compute import FEATURES

__all__ = ["Examples", "Replayed", "ShownLists", "held_out_from", "of_traffic", "parts"]

FEWEST_LATER = 50
"Minimum number of queries to calibrate on."
MOST_LATER = 0.2
"Largest fraction of the queries of history that is held out so that enough slates are."


@dataclass(slots=True)
class Examples:
    """q queries with c candidates each, padded."""

    features: NDArray[np.float32]
    "Features: `(q, c, features)`."
    labels: NDArray[np.float32]
    "Whether each head's action followed within the attribution window: `(q, c, heads)`."
    gains: NDArray[np.float32]
    "Listwise target `(q, c)`: larger for items that are liked sooner."
    valid: NDArray[np.bool_]
    "True for candidates, False for padding: `(q, c)`."
    correction: NDArray[np.float32]
    "Logarithm of the number of candidates that each represents: `(q, c)`. Minus infinity where labels are not final."
    exposed: NDArray[np.bool_]
    "True for slates, whose labels are responses to exposure; False for replayed organic interactions. `(q,)`."
    places: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    "Number of training events before each query, ascending: `(q,)`. Their own order where it is not given."
    traffic: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """Number of moments of all traffic that each query stands for, because queries with likes are sampled more often than
    others: `(q,)`. 1 where it is not given."""

    def __post_init__(self) -> None:
        """Number the queries if no places are given, and let each stand for itself if no traffic is given."""
        if len(self.places) != len(self.features):
            self.places = np.arange(len(self.features), dtype=np.int64)
        if len(self.traffic) != len(self.features):
            self.traffic = np.ones(len(self.features), np.float32)

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: slice | NDArray[np.intp]) -> Examples:
        """Select some of the queries."""
        return Examples(*(getattr(self, name)[rows] for name in self.__slots__))


@dataclass(slots=True)
class ShownLists:
    """Slates from impression events: each a choice among the items that were shown together."""

    examples: Examples
    "Features are those of a request that names the items as its candidates."
    positions: NDArray[np.int64]
    "Position of each item, 0 is first, -1 where it is unknown: `(q, c)`."
    users: NDArray[np.int64]
    "Number of each slate's user: `(q,)`."
    items: NDArray[np.int64]
    "Row of each item: `(q, c)`."

    def __len__(self) -> int:
        return len(self.examples)

    def take(self, rows: slice | NDArray[np.intp]) -> ShownLists:
        """Select some of the slates."""
        return ShownLists(self.examples.take(rows), self.positions[rows], self.users[rows], self.items[rows])

    def parts(self, cut: int) -> tuple[ShownLists, ShownLists]:
        """Split into those before place `cut`, to learn from, and the others. Either may be none."""
        before = self.examples.places < cut
        return self.take(np.flatnonzero(before)), self.take(np.flatnonzero(~before))


@dataclass(slots=True)
class Replayed:
    """Result of a replay."""

    examples: Examples
    "Replayed history and logged slates."
    light_scores: NDArray[np.float32]
    "Normalised source scores of sampled candidates, the liked one first: `(q, c, sources)`."
    sources: list[str]
    logged: int
    "Number of queries that are logged slates; slates of unknown items only are not counted."
    shown: ShownLists
    "Slates from impression events."

    def without_transitions(self) -> Replayed:
        """Remove the features of transitions, and the candidates that only they brought."""
        examples, column = self.examples, self.sources.index("transitions")
        others = [n for n, name in enumerate(FEATURES) if name.startswith("by_") and name != "by_transitions"]
        alone = (examples.features[..., FEATURES.index("by_transitions")] > 0) & ~examples.features[..., others].any(axis=-1)
        valid = examples.valid & ~(alone & ~examples.exposed[:, None])
        gains, labels = (
            np.where(valid, examples.gains, np.float32(0)),
            np.where(valid[..., None], examples.labels, np.float32(0)),
        )
        features, shown = (_without_features_of_transitions(part.features) for part in (examples, self.shown.examples))
        light = self.light_scores.copy()
        light[..., column : column + 1] = 0.0
        kept = replace(examples, features=features, valid=valid, gains=gains, labels=labels)
        lists = replace(self.shown, examples=replace(self.shown.examples, features=shown))
        return replace(self, examples=kept, light_scores=light, shown=lists)


def _without_features_of_transitions(features: NDArray[np.float32]) -> NDArray[np.float32]:
    left = features.copy()
    left[..., [FEATURES.index(name) for name in ("by_transitions", "transition", "transition_share")]] = 0.0
    return left


def _nine_tenths(queries: int) -> int:
    """Index of the first query after nine tenths of them."""
    return min(queries - 1, max(1, int(queries * 0.9)))


def held_out_from(examples: Examples, shown: ShownLists | None = None) -> int:
    """Place from which queries and slates are held out from training: one moment for both.

    Nine tenths of the queries precede it. With slates `shown` it is where nine tenths of these precede it, as far as at least
    FEWEST_LATER queries and at most MOST_LATER of them are held out: the newest slates may all lie in the
    newest tenth of history.
    """
    places, n = examples.places, len(examples)
    at = _nine_tenths(n)
    if shown is not None and len(shown):
        wanted = np.searchsorted(places, shown.examples.places[_nine_tenths(len(shown))])
        at = int(np.clip(wanted, min(at, int(n * (1 - MOST_LATER))), max(at, n - FEWEST_LATER)))
    place = int(places[at])
    if place > int(places[0]):
        return place
    # at least the first query is learned from
    later = places[places > place]
    return int(later[0]) if len(later) else place + 1


def parts(examples: Examples, cut: int | None = None) -> tuple[Examples, Examples]:
    """Split into queries before place `cut`, to learn from, and later ones to calibrate on. `cut`: `held_out_from` by default.

    If the latter are too few, the training queries serve both.
    """
    before = examples.places < (held_out_from(examples) if cut is None else cut)
    learn, later = examples.take(np.flatnonzero(before)), examples.take(np.flatnonzero(~before))
    return learn, later if len(later) >= FEWEST_LATER else learn


def of_traffic(later: Examples, lists: Examples | None = None) -> list[Examples]:
    """Those of held-out queries that stand for all traffic. `lists`: held-out slates from impression events.

    They are the slates whose labels are final, if there are FEWEST_LATER of them: what was shown to whom is known. Otherwise
    they are the queries of history.
    """
    slates = []
    for part in (later, lists):
        if part is not None:
            final = (np.isfinite(part.correction) | ~part.valid).all(axis=1)
            slates.append(part.take(np.flatnonzero(part.exposed & final)))
    if sum(map(len, slates)) >= FEWEST_LATER:
        return [part for part in slates if len(part)]
    history = later.take(np.flatnonzero(~later.exposed))
    return [history if len(history) else later]
