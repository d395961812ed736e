"""Laws of the projections from encoder vectors to the towers' inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_corpus import pictured

from training.encoders.cache import encode_items
from training.encoders.image import ImageEncoder
from training.encoders.projections import fit_projection, projected
from training.encoders.text import TextEncoder
from training.release.learned import Learned

few = settings(max_examples=60, deadline=None)


@few
@given(st.integers(0, 1_000), st.integers(1, 12), st.integers(1, 16), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_axes_are_uncorrelated_ordered_and_as_wide_as_asked(seed: int, d: int, kept: int, flatten: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(size=(200, d)) * 2.0 ** -rng.integers(0, 6, d) + rng.normal(size=d)).astype(np.float32)
    present = rng.random(200) < 0.9
    found = projected(vectors, present, fit_projection(vectors, present, kept, flatten))
    assert not found[~present].any()
    assert not found[:, min(kept, d) :].any(), "axes that there are not"
    told = found[present][:, : min(kept, d)].astype(np.float64)
    assert (told**2).mean() == pytest.approx(1.0, rel=1e-2)
    width = told.std(axis=0)
    assert (np.diff(width) <= 1e-3).all()
    plain = projected(vectors, present, fit_projection(vectors, present, kept))[present][:, : min(kept, d)]
    expected = (plain.std(axis=0) / plain.std(axis=0)[0]) ** (1 - flatten)
    assert width / width[0] == pytest.approx(expected, rel=2e-2)
    covariance = np.cov(told.T).reshape(len(width), -1)
    assert np.abs(covariance - np.diag(np.diag(covariance))).max() < 1e-2


@few
@given(st.integers(0, 1_000), st.integers(1, 30), st.integers(1, 40), st.sampled_from([0.0, 0.5]))
def test_fewer_items_than_dimensions_are_rotated_as_many_are(seed: int, n: int, kept: int, flatten: float) -> None:
    drawn = np.random.default_rng(seed).normal(size=(n, 36))
    vectors = (drawn * 2.0 ** -np.arange(36)).astype(np.float32)
    # repeated often, the same items have the same axes and more rows than dimensions
    few_items, many = (
        fit_projection(v, np.ones(len(v), np.bool_), kept, flatten) for v in (vectors, np.tile(vectors, (40, 1)))
    )
    assert few_items.any(axis=0).sum() <= min(n, kept)
    found, expected = (projected(vectors, np.ones(n, np.bool_), each) for each in (few_items, many))
    wide = expected.std(axis=0) > 1e-3 * max(expected.std(axis=0).max(), 1e-9)
    assert np.abs(found[:, wide]) == pytest.approx(np.abs(expected[:, wide]), abs=2e-2)


def test_the_towers_read_text_and_image_by_the_root_of_their_weights(learned: Learned, vectors: Path) -> None:
    """The factor is in the release's projection, so that a worker applies it to a new item's vectors, too."""
    seen, unmet = pictured(vectors / "images")
    assert learned.manifest.content["text"] != learned.manifest.content["image"]
    for modality, encoder in (("text", TextEncoder()), ("image", ImageEncoder())):
        raw, present = encode_items([*seen, *unmet], encoder, vectors)
        read = projected(raw, present, learned.arrays[f"{modality}_projection.npy"])[present]
        kept = int(np.flatnonzero(read.any(axis=0)).max()) + 1
        there = (read[:, :kept].astype(np.float64) ** 2).sum() / read[:, :kept].size
        assert there * kept / min(raw.shape[1], read.shape[1]) == pytest.approx(learned.manifest.content[modality], rel=0.02)
