"""What a training or an update gives: a release that is not written yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from models.release.release import Manifest, Release, write_release
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
    """What training measured of itself, for the manifest: `reliability` per head, how many `logged_slates` the ranker learned
    from and how many `content_queries` the weights of content, `index` and `half` where there are."""
    checkpoints: Checkpoints | None = None
    modules: Modules | None = None
    "What was exported, as torch has it."
    weights: bytes = b""
    "Both towers' weights, for an update to go on from."
    images: Mapping[str, int] = field(default_factory=dict)
    "Of images by URL, how many were fetched, and by reason how many were not; and which images could not be used."

    @property
    def size_mb(self) -> float:
        """Bytes of what the release's files will hold, MB."""
        parts = (*(array.nbytes for array in self.arrays.values()), *map(len, self.graphs.values()), len(self.weights))
        return sum(parts) / 1e6

    def release(self) -> Release:
        """As a release in memory."""
        return Release(self.manifest, self.arrays, self.graphs, self.item_ids)

    def write(self, root: Path, metrics: Mapping[str, Any], parent: str = "none") -> Path:
        """Write a release folder below `root`; the training's checkpoints have then served."""
        manifest = replace(self.manifest, metrics={**self.measured, **metrics}, parent=parent)
        folder = write_release(root, manifest, self.arrays, self.graphs, self.item_ids, self.weights)
        if self.checkpoints is not None:
            self.checkpoints.clear()
        return folder
