"""Text and image encoders for a stream of items, as used by `riffle encode`.

An encoder loads its weights with its first item, so that an unused one holds none.
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

__all__ = ["LiveEncoders", "encode_catalogue"]


class LiveEncoders:
    """Text and image vectors of items, with the encoders and the cache of training."""

    def __init__(self, cache: Path, text_model: str = "", image_hosts: str = "") -> None:
        """`cache`: folder of vectors, shared with training. The other arguments equal the options of `riffle train`."""
        self._cache = cache
        self._images = image_encoder(cache, image_hosts)
        self._makers: dict[str, Callable[[], Encoder]] = {
            "text": lambda: TextEncoder(text_model),
            "image": lambda: self._images,
        }
        self._made: dict[str, tuple[Encoder, VectorCache]] = {}

    @property
    def counters(self) -> Mapping[str, int]:
        """Counts for images by URL: fetched, and not fetched by reason. Also counts unusable images by reason."""
        return self._images.outcomes

    def _encoders(self) -> dict[str, tuple[Encoder, VectorCache]]:
        if not self._made:
            for modality, make in self._makers.items():
                encoder = make()
                self._made[modality] = (encoder, VectorCache(self._cache, encoder))
        return self._made

    @property
    def names(self) -> list[str]:
        """Names of the encoders."""
        return [encoder.name for encoder, _ in self._encoders().values()]

    def fingerprints(self, items: Sequence[Item]) -> list[int]:
        """Fingerprint of the content behind each item's vectors. It is the same while the item's content is unchanged."""
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
        """Vectors of each item in every modality. Contents encoded before, here or in training, are taken from the cache."""
        columns = []
        for modality, (encoder, kept) in self._encoders().items():
            keys = encode_into(kept, items, encoder)
            columns.append([_vector(modality, encoder, key, kept) for key in keys])
        return list(zip(*columns, strict=True))


def encode_catalogue(
    items: Sequence[Item], cache: Path, text_model: str = "", image_hosts: str = ""
) -> dict[str, tuple[ItemVector, ...]]:
    """Vectors that `riffle encode` would publish for these items, by item id. Loads nothing when there are none."""
    if not items:
        return {}
    vectors = LiveEncoders(cache, text_model, image_hosts).encode(items)
    return {item.item_id: mine for item, mine in zip(items, vectors, strict=True)}


def _vector(modality: str, encoder: Encoder, key: bytes | None, kept: VectorCache) -> ItemVector:
    values: NDArray[np.float32] | None = None if key is None else kept.get(key)
    return ItemVector(modality, encoder.name, key or b"", None if values is None else values.astype(HALF))
