"""The encoders of text and image as one, for items that arrive one after the other: what `riffle encode` asks by name.

Nothing is loaded before the first item that needs it: an encoder that has nothing to do holds no weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.items.vectors import HALF, ItemVector, fingerprint
from schemas.records import Item
from training.encoders.cache import VectorCache, encode_into
from training.encoders.encoder import Encoder
from training.encoders.image import image_encoder
from training.encoders.text import TextEncoder

__all__ = ["LiveEncoders", "encoded"]


class LiveEncoders:
    """Text and image vectors of items, by the same encoders and the same cache as training."""

    def __init__(self, cache: Path, text_model: str = "", image_hosts: str = "") -> None:
        """`cache`: the folder of vectors that training uses; the others: what `riffle train` is given by these names."""
        self._cache = cache
        self._images = image_encoder(cache, image_hosts)
        self._makers: dict[str, Callable[[], Encoder]] = {
            "text": lambda: TextEncoder(text_model),
            "image": lambda: self._images,
        }
        self._made: dict[str, tuple[Encoder, VectorCache]] = {}

    @property
    def counters(self) -> Mapping[str, int]:
        """Of images by URL, how many were fetched, and by reason how many were not; and which images could not be used."""
        return self._images.outcomes

    def _encoders(self) -> dict[str, tuple[Encoder, VectorCache]]:
        if not self._made:
            for modality, make in self._makers.items():
                encoder = make()
                self._made[modality] = (encoder, VectorCache(self._cache, encoder))
        return self._made

    @property
    def names(self) -> list[str]:
        """Of the encoders."""
        return [encoder.name for encoder, _ in self._encoders().values()]

    def fingerprints(self, items: Sequence[Item]) -> list[int]:
        """Per item, what its vectors would be made of now: those of an item whose content did not change are the same."""
        found = []
        for encoder, _ in self._encoders().values():
            encoder.prepare(items)
        for item in items:
            contents = [(m, encoder.name, encoder.content(item)) for m, (encoder, _) in self._encoders().items()]
            found.append(
                fingerprint((m, name, hashlib.sha256(c).digest() if c is not None else b"") for m, name, c in contents)
            )
        return found

    def encode(self, items: Sequence[Item]) -> list[tuple[ItemVector, ...]]:
        """Per item its vector in every modality; a content that was encoded before, here or in training, is not again."""
        columns = []
        for modality, (encoder, kept) in self._encoders().items():
            keys = encode_into(kept, items, encoder)
            columns.append([_vector(modality, encoder, key, kept) for key in keys])
        return list(zip(*columns, strict=True))


def encoded(
    items: Sequence[Item], cache: Path, text_model: str = "", image_hosts: str = ""
) -> dict[str, tuple[ItemVector, ...]]:
    """By item id what `riffle encode` would publish of these items; loads nothing where there are none."""
    if not items:
        return {}
    vectors = LiveEncoders(cache, text_model, image_hosts).encode(items)
    return {item.item_id: mine for item, mine in zip(items, vectors, strict=True)}


def _vector(modality: str, encoder: Encoder, key: bytes | None, kept: VectorCache) -> ItemVector:
    values: NDArray[np.float32] | None = None if key is None else kept.get(key)
    return ItemVector(modality, encoder.name, key or b"", None if values is None else values.astype(HALF))
