"""The ranker of a release alone: one graph and the weights of its heads, for a process without a catalogue."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.features.compute import FEATURES, columns_of
from models.release.graphs import Provider, first_output, session_of
from models.release.release import Release
from schemas.errors import ReleaseRejected

__all__ = ["Ranker"]

TRIED = (1, 300)
"Numbers of candidates with which a graph is tried before it serves."


class Ranker:
    """A loaded and tried ranker. Any thread may use it. It implements `models.pipeline.rank_task.Ranks`."""

    def __init__(
        self, release: Release, provider: Provider = Provider.AUTO, threads: int = 1, cache: Path | None = None
    ) -> None:
        """Open the graph, and try it. `threads` applies to a CPU. `cache`: folder for compiled engines of TensorRT.

        Raises:
            ReleaseRejected: features of another specification, or a graph that does not run or has non-finite output.
        """
        manifest = release.manifest
        self._columns = columns_of(release.name, manifest.feature_spec)
        self.name = release.name
        self.heads = tuple(head.action for head in manifest.heads)
        self._weights = np.asarray([head.weight for head in manifest.heads], np.float32)
        try:
            self._session = session_of(release.graphs["ranker.onnx"], threads, provider=provider, cache=cache)
            tried = [self.rank(np.zeros((n, len(FEATURES)), np.float32)) for n in TRIED]
        except Exception as exc:
            raise ReleaseRejected("graph", f"the ranker of release {release.name} does not run: {exc}") from exc
        if not all(
            heads.shape == (n, len(self.heads)) and np.isfinite(heads).all() for n, heads in zip(TRIED, tried, strict=True)
        ):
            raise ReleaseRejected("graph", f"the ranker of release {release.name} gives no finite {len(self.heads)} heads")

    @property
    def provider(self) -> str:
        """ONNX Runtime's execution provider in use, such as `CPUExecutionProvider`."""
        return str(self._session.get_providers()[0])

    def rank(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Predict a calibrated probability per head: float32 `(n, heads)`."""
        mine = features if self._columns is None else features[:, self._columns]
        return first_output(self._session, features=mine)

    def score(self, heads: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the ranking score, the weighted sum of the heads: float32 `(n,)`."""
        weighted: NDArray[np.float32] = heads @ self._weights
        return weighted
