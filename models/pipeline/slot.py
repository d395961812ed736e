"""The place of the serving release: a new one is verified and tried before it takes over, the old one serves meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.release.serving import ServingModel

__all__ = ["ModelSlot"]


class ModelSlot:
    """Holds the serving release, or none. A batch reads `current` once: a swap never shows within a slate."""

    def __init__(self) -> None:
        self.current: ServingModel | None = None
        self.refused: dict[str, str] = {}
        "Releases that were refused here, and why."

    @property
    def name(self) -> str:
        """Name of the serving release, `none` without one."""
        return "none" if self.current is None else self.current.name

    @staticmethod
    def prepare(folder: Path, sha256: str | None = None) -> ServingModel:
        """Verify, load and try a release; touches nothing that serves, so any thread may do it.

        Raises:
            ReleaseRejected: the release must not serve.
        """
        # because a worker without a release needs no ONNX Runtime
        from models.release.release import Release
        from models.release.serving import ServingModel

        return ServingModel(Release.open(folder, sha256))

    def swap(self, model: ServingModel | None) -> None:
        """Let a prepared release serve from the next batch on; None serves without one."""
        self.current = model
