"""Interface of encoders of item contents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.records import Item

__all__ = ["ON_GPU", "Encoder", "Progress", "gpu"]

ON_GPU = 256
"Contents per batch on a GPU."
Progress = Callable[[int, int], None]


class Encoder(Protocol):
    """Maps contents to vectors."""

    name: str
    "Identifies the weights and everything else that a vector depends on."
    dimensions: int
    batch: int
    "Most efficient number of contents per batch."

    def prepare(self, items: Sequence[Item], progress: Progress | None = None) -> None:
        """Fetch remote contents of these items. Called before their contents are read."""

    def content(self, item: Item) -> bytes | None:
        """Return the content of an item to encode; None when the item lacks this modality."""

    def encode(self, contents: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return vectors, float32 `(n, dimensions)`, and which contents could be read, bool `(n,)`."""

    def left_out(self, items: Sequence[Item]) -> None:
        """Count items without a vector that name a content, by reason. Called with all items without a vector."""


def gpu() -> bool:
    """Whether a GPU is available for encoding. Loads torch."""
    import torch

    return torch.cuda.is_available()
