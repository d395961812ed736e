"""The slot of the serving release. The old release serves until the new one is verified and tried."""

from __future__ import annotations

from models.pipeline.batch import Model

__all__ = ["ModelSlot"]


class ModelSlot:
    """Holds the serving release, or none. A batch reads `current` once, so that a swap never affects a running batch."""

    def __init__(self) -> None:
        self.current: Model | None = None
        self.refused: dict[str, str] = {}
        "Reason of refusal by release name."

    @property
    def name(self) -> str:
        """Name of the serving release, `none` without one."""
        return "none" if self.current is None else self.current.name

    def swap(self, model: Model | None) -> None:
        """Serve a prepared release from the next batch on; None: no release."""
        self.current = model
