"""Content vectors of items as the towers read them, with newly fitted projections or those of a release."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from models.items.store import TEXT_DIMENSIONS, text_vector
from models.release.release import Release
from schemas.errors import BadDataset
from schemas.records import Item
from training.data.table import EventTable
from training.encoders.cache import encode_items
from training.encoders.encoder import Encoder, Progress
from training.encoders.image import image_encoder
from training.encoders.projections import fit_projection, projected
from training.encoders.text import TextEncoder
from training.loop.group import Group
from training.retrieval.content_weights import content_weights
from training.retrieval.towers import Content

__all__ = ["EncodedContent", "encode", "encode_as", "hashed_words"]

TEXT_KEPT, IMAGE_KEPT = 128, 64
FLATTENED = {"text": 0.0, "image": 0.5}
"Flattening of each modality's axes, 0 to 1. Otherwise a few image axes, such as brightness, would dominate the others."
LEAST_READ = 0.05
"Smallest factor on the towers' text and image inputs, so that a modality without support in the history does not learn slowly."


def hashed_words(items: Sequence[Item]) -> NDArray[np.float32]:
    """Hashed words and categories of items: float32 `(n, TEXT_DIMENSIONS)`, each row of length 1 or 0."""
    return np.stack([text_vector(item) for item in items]) if items else np.zeros((0, TEXT_DIMENSIONS), np.float32)


@dataclass(slots=True)
class EncodedContent:
    """Content vectors and their metadata."""

    content: Content
    projections: dict[str, NDArray[np.float32]]
    encoders: dict[str, str]
    "Encoder name by modality; only modalities that some item has."
    images: Mapping[str, int]
    "Counts for images by URL: fetched, and not fetched by reason. Also counts unusable images by reason."
    weights: dict[str, float] = field(default_factory=dict)
    "Weights of words, text and image when items are compared by content (`training.retrieval.content_weights`)."

    def weigh(self, table: EventTable, seed: int) -> int:
        """Learn the weights from history and return the number of interactions used. All processes get the first one's weights.

        The towers' text and image inputs are scaled by the root of these weights, as in a comparison. So a modality with little
        information offers little to memorise. The factor is part of the projection, so that a worker applies it too.
        """
        content = self.content
        parts = {"words": content.hashed, "text": content.text, "image": content.image}
        self.weights, asked = content_weights(table, parts, seed)
        everybodys = Group.current().gathered(torch.tensor(list(self.weights.values()), dtype=torch.float64))
        self.weights = dict(zip(self.weights, everybodys[0].tolist(), strict=True))
        factors = {name: np.float32(np.sqrt(max(self.weights[name], LEAST_READ))) for name in self.projections}
        self.projections = {name: fitted * factors[name] for name, fitted in self.projections.items()}
        self.content = replace(content, text=content.text * factors["text"], image=content.image * factors["image"])
        return asked


def encode(
    items: Sequence[Item], text_model: str, image_hosts: str, cache: Path, begin: Callable[[str], Progress]
) -> EncodedContent:
    """Encode items and fit projections to the vectors. An encoder runs only where its modality exists.

    `begin` is called with the name of each part and returns that part's progress callback.
    """
    parts, projections, names = [], {}, {}
    images = image_encoder(cache, image_hosts)
    encoders: tuple[tuple[str, str, Callable[[], Encoder], int], ...] = (
        ("text", "encode text", lambda: TextEncoder(text_model), TEXT_KEPT),
        ("image", "encode images", lambda: images, IMAGE_KEPT),
    )
    for modality, part, make, kept in encoders:
        progress, encoder = begin(part), make()
        vectors, present = encode_items(items, encoder, cache, progress)
        projections[modality] = fit_projection(vectors, present, kept, FLATTENED[modality])
        parts.append((projected(vectors, present, projections[modality]), present))
        if present.any():
            names[modality] = encoder.name
    (text, has_text), (image, has_image) = parts
    there = np.stack([has_text, has_image], axis=1).astype(np.float32)
    return EncodedContent(Content(hashed_words(items), text, image, there), projections, names, images.outcomes)


def encode_as(
    release: Release, items: Sequence[Item], text_model: str, image_hosts: str, cache: Path
) -> tuple[Content, Mapping[str, int]]:
    """Encode items with the projections of `release`. Also returns image counts, see `ImageEncoder.outcomes`.

    Raises:
        BadDataset: the release's encoders differ from this installation's.
    """
    images = image_encoder(cache, image_hosts)
    encoders: dict[str, Callable[[], Encoder]] = {"text": lambda: TextEncoder(text_model), "image": lambda: images}
    parts, there = [], []
    for modality, make in encoders.items():
        projection, encoder = release.projections[modality], release.manifest.encoders.get(modality)
        vectors, present = np.zeros((len(items), len(projection) - 1), np.float32), np.zeros(len(items), np.bool_)
        if encoder is not None:
            made = make()
            if made.name != encoder:
                raise BadDataset(
                    "other_encoder", f"the champion's {modality} encoder is {encoder}, this is {made.name}: train in full"
                )
            vectors, present = encode_items(items, made, cache)
        parts.append(projected(vectors, present, projection))
        there.append(present)
    return Content(hashed_words(items), parts[0], parts[1], np.stack(there, axis=1).astype(np.float32)), images.outcomes
