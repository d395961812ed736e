"""The place of the serving release: a new one is verified and tried before it takes over, the old one serves meanwhile."""

from __future__ import annotations

from models.pipeline.batch import Model

__all__ = ["ModelSlot"]


class ModelSlot:
    """Holds the serving release, or none. A batch reads `current` once: a swap never shows within a slate."""

    def __init__(self) -> None:
        self.current: Model | None = None
        self.refused: dict[str, str] = {}
        "Releases that were refused here, and why."

    @property
    def name(self) -> str:
        """Name of the serving release, `none` without one."""
        return "none" if self.current is None else self.current.name

    def swap(self, model: Model | None) -> None:
        """Let a prepared release serve from the next batch on; None serves without one."""
        self.current = model
