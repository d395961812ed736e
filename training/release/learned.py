"""Result of a training or an update: a release that is not written yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from models.release.release import Manifest, Release, write_release
from training.data.slates.examination import Examination
from training.loop.checkpoints import Checkpoints
from training.release.parity import Modules

__all__ = ["Learned"]


@dataclass(slots=True, repr=False)
class Learned:
    """The parts of a release, not yet written."""

    manifest: Manifest
    arrays: dict[str, NDArray[Any]]
    graphs: dict[str, bytes]
    item_ids: list[str]
    seconds: dict[str, float] = field(default_factory=dict)
    parity: float = 0.0
    measured: dict[str, Any] = field(default_factory=dict)
    """Measurements of the training for the manifest: `reliability` per head and the expected `calibration` error of it, number
    of `logged_slates` and of `content_queries` (interactions that the content weights were learned from), and `index`, `half`,
    `position_bias` and `transitions` (`kept`, the `gain` in the light score's loss, the `decay` of a session's events) where
    they exist."""
    checkpoints: Checkpoints | None = None
    modules: Modules | None = None
    "Torch modules that were exported."
    weights: bytes = b""
    "Both towers' weights, from which an update continues."
    images: Mapping[str, int] = field(default_factory=dict)
    "Counts for images by URL: fetched, and not fetched by reason. Also counts unusable images by reason."
    examination: Examination | None = None
    "How likely each position of a slate is looked at; None without slates from impression events."

    @property
    def size_mb(self) -> float:
        """Size of the release's files, MB."""
        parts = (*(array.nbytes for array in self.arrays.values()), *map(len, self.graphs.values()), len(self.weights))
        return sum(parts) / 1e6

    def release(self) -> Release:
        """Make a release in memory."""
        return Release(self.manifest, self.arrays, self.graphs, self.item_ids)

    def write(self, root: Path, metrics: Mapping[str, Any], parent: str = "none") -> Path:
        """Write a release folder below `root` and remove the training's checkpoints."""
        manifest = replace(self.manifest, metrics={**self.measured, **metrics}, parent=parent)
        folder = write_release(root, manifest, self.arrays, self.graphs, self.item_ids, self.weights)
        if self.checkpoints is not None:
            self.checkpoints.clear()
        return folder
