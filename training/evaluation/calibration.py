"""Reliability of a release's probabilities on all traffic: at moments of events whether liked or not, and on logged slates.

The queries of an evaluation are at liked events, around which users are more active than usual. Probabilities are calibrated
for all requests, so they are compared with outcomes at moments that are drawn from all first interactions, and on the slates
that were shown, liked or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.data.slates.logged import slates_of
from training.evaluation.ranking_metrics import reliability

if TYPE_CHECKING:  # it imports ONNX Runtime, which commands do not need to start
    from models.release.serving import ServingModel

__all__ = ["NEWEST", "Traffic", "of_logged"]

NEWEST = 2_000
"Number of newest logged slates that are looked at."


@dataclass(slots=True)
class Traffic:
    """Probabilities and outcomes of candidates at many moments."""

    heads: list[NDArray[np.float32]] = field(default_factory=list)
    "Probabilities at each moment: `(candidates, heads)`."
    came: list[NDArray[np.bool_]] = field(default_factory=list)
    "Whether each head's action followed within its window, at each moment: `(candidates, heads)`."

    def __len__(self) -> int:
        return len(self.heads)

    def note(self, heads: NDArray[np.float32], came: NDArray[np.bool_]) -> None:
        """Add a moment; one without ranked candidates says nothing and is left out."""
        if heads.size:
            self.heads.append(heads)
            self.came.append(came)

    def to_json(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Per head: number of `queries` and `candidates`; the mean probability `predicted` and the frequency `observed`; `ece`,
        the expected calibration error; and `bins`, ten of equal size, each with mean probability, frequency and size.
        """
        if not len(self):
            return {}
        said, came = np.concatenate(self.heads), np.concatenate(self.came)
        found: dict[str, dict[str, Any]] = {}
        for head, name in enumerate(names):
            bins = reliability(said[:, head], came[:, head])
            rows = zip(bins.said.tolist(), bins.came.tolist(), bins.size.tolist(), strict=True)
            found[name] = {
                "queries": len(self),
                "candidates": len(said),
                "predicted": round(float(said[:, head].mean(dtype=np.float64)), 6),
                "observed": round(float(came[:, head].mean()), 6),
                "ece": round(bins.error, 6),
                "bins": [[round(s, 6), round(c, 6), int(n)] for s, c, n in rows],
            }
        return found


def of_logged(corpus: Corpus, model: ServingModel, after_ms: int, until_ms: int, most: int = NEWEST) -> Traffic:
    """Probabilities of `model` for the items of the newest logged slates in this time, from the features that were logged.

    Slates whose windows are open at `until_ms` are left out. Other releases may have served them, with other scores among the
    features: figures are exact for slates that `model` served itself.
    """
    found, events = Traffic(), corpus.events
    if corpus.logged is None or not isinstance(events, EventFrame):
        return found
    examples = corpus.logged(after_ms, until_ms, most, model.windows_ms)
    if not len(examples):
        return found
    for slate in slates_of(examples, events, tuple((name, 1.0) for name in model.heads)):
        if slate.features is not None and len(slate.features):
            found.note(model.rank(slate.features), slate.labels > 0)
    return found
