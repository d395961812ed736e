"""Training examples of the ranker: queries with their candidates, split into training and calibration."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from models.features.compute import FEATURES

__all__ = ["Examples", "Replayed", "ShownLists", "calibrated_from", "parts"]


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
    "Logarithm of the number of candidates that each represents: `(q, c)`."
    exposed: NDArray[np.bool_]
    "True for slates, whose labels are responses to exposure; False for replayed organic interactions. `(q,)`."

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

    def parts(self) -> tuple[ShownLists, ShownLists]:
        """Split into those to learn from and later ones, which may be none."""
        cut = calibrated_from(len(self)) if len(self) > 1 else len(self)
        return self.take(slice(0, cut)), self.take(slice(cut, None))


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


def calibrated_from(queries: int) -> int:
    """Index of the first query that is held out from training."""
    return min(queries - 1, max(1, int(queries * 0.9)))


def parts(examples: Examples) -> tuple[Examples, Examples]:
    """Split into training queries and later calibration queries. If the latter are too few, the training queries serve both."""
    cut = calibrated_from(len(examples))
    learn, later = examples.take(slice(0, cut)), examples.take(slice(cut, None))
    return learn, later if len(later) >= 50 else learn
