"""What an encoder of item contents is to its callers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.records import Item

__all__ = ["ON_GPU", "Encoder", "Progress", "gpu"]

ON_GPU = 256
"Contents encoded together where there is a GPU."
Progress = Callable[[int, int], None]


class Encoder(Protocol):
    """Turns contents into vectors."""

    name: str
    "Names the weights and everything else that a vector depends on."
    dimensions: int
    batch: int
    "Contents that are best encoded together."

    def prepare(self, items: Sequence[Item], progress: Progress | None = None) -> None:
        """Called before the contents of these items are asked for: brings here what is elsewhere."""

    def content(self, item: Item) -> bytes | None:
        """What is encoded of an item; None when the item lacks this modality."""

    def encode(self, contents: Sequence[bytes]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Vectors, float32 `(n, dimensions)`, and which contents could be read, bool `(n,)`."""

    def left_out(self, items: Sequence[Item]) -> None:
        """Called with the items that get no vector: counts those that name a content, with the reason."""


def gpu() -> bool:
    """Whether there is a GPU to encode on. Loads torch."""
    import torch

    return torch.cuda.is_available()
