"""Transitions of items in sessions, as a release holds them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ReleaseRejected

__all__ = ["LAGS", "MAX_LAGS", "SESSION_GAP_MS", "TRANSITIONS", "Transitions"]

LAGS = "transition_lags.npy"
TRANSITIONS: Mapping[str, tuple[str, int]] = {
    "transition_index.npy": ("<i4", 2),
    "transition_weight.npy": ("<f4", 2),
    LAGS: ("<f4", 1),
}
"Type and number of dimensions of each array, by file name."
MAX_LAGS = 30
"Maximum number of newest events that transitions start from; `models.pipeline.batch.RECENT` is no smaller."
SESSION_GAP_MS = 3_600_000
"Largest time between two events of a session, for transitions (ms)."


@dataclass(frozen=True, slots=True)
class Transitions:
    """Items that follow items in sessions, of n items with at most m followers each."""

    index: NDArray[np.int32]
    "Numbers of the items that follow, heaviest first, -1 after the last `(n, m)`."
    weight: NDArray[np.float32]
    "Their weights, 0 or more `(n, m)`."
    lags: NDArray[np.float32]
    "Weights of the newest events of a session, newest first `(l,)`."

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]]) -> Transitions:
        """Take the arrays of TRANSITIONS out of a release's."""
        return cls(*(arrays[name] for name in TRANSITIONS))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by file name."""
        return dict(zip(TRANSITIONS, (self.index, self.weight, self.lags), strict=True))

    def check(self, release: str, n_items: int) -> None:
        """Check that they fit the items of a release, and are finite and not negative.

        Raises:
            ReleaseRejected: they are not.
        """
        index = self.index
        inside = not index.size or (int(index.max()) < n_items and int(index.min()) >= -1)
        if len(index) != n_items or index.shape != self.weight.shape or not inside or not 1 <= len(self.lags) <= MAX_LAGS:
            message = f"transitions of release {release} do not fit its {n_items} items"
            raise ReleaseRejected("shapes", message, "transition_index.npy")
        for file, array in (("transition_weight.npy", self.weight), (LAGS, self.lags)):
            if not bool(np.isfinite(array).all()) or bool((array < 0).any()):
                raise ReleaseRejected("not_finite", f"{file} of release {release} must hold finite numbers of 0 or more", file)
