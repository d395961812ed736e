"""What the ranker learns from: queries with their candidates, and which of them are kept for calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Examples", "Replayed", "calibrated_from", "parts"]


@dataclass(slots=True)
class Examples:
    """q queries with c candidates each, padded."""

    features: NDArray[np.float32]
    "`(q, c, features)`."
    labels: NDArray[np.float32]
    "Whether each head's action followed within the attribution window: `(q, c, heads)`."
    gains: NDArray[np.float32]
    "Listwise target: the sooner liked, the larger: `(q, c)`."
    valid: NDArray[np.bool_]
    "`(q, c)`."
    correction: NDArray[np.float32]
    "Logarithm of how many candidates one stands for: `(q, c)`."
    exposed: NDArray[np.bool_]
    "True for slates, whose labels are responses to exposure; False for replayed organic interactions. `(q,)`."

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: slice | NDArray[np.intp]) -> Examples:
        """Some of the queries."""
        return Examples(*(getattr(self, name)[rows] for name in self.__slots__))


@dataclass(slots=True)
class Replayed:
    """What replay gathered."""

    examples: Examples
    light_scores: NDArray[np.float32]
    "Normalised source scores of sampled candidates, the liked one first: `(q, c, sources)`."
    sources: list[str]
    logged: int
    "How many of the queries are slates; one of unknown items alone is none."
    told: NDArray[np.bool_]
    "Which of the queries are slates without logged features, which events told of: `(q,)`."


def calibrated_from(queries: int) -> int:
    """Number of the first of so many queries that is not trained on."""
    return min(queries - 1, max(1, int(queries * 0.9)))


def parts(examples: Examples) -> tuple[Examples, Examples]:
    """What is learned from, and the later queries that calibrate; all queries where those would be too few."""
    cut = calibrated_from(len(examples))
    learn, later = examples.take(slice(0, cut)), examples.take(slice(cut, None))
    return learn, later if len(later) >= 50 else learn
