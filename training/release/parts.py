"""Arrays and graphs of a release, listed once for both full training and update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from models.items.vectors import unit_rows
from models.release.sequences import EVENT_WIDTH, LENGTH
from training.ranking.base import CONSTANT, Ranker
from training.release.export import to_half, to_onnx
from training.retrieval.simulated_cold import Retrieval
from training.retrieval.towers import Content

__all__ = [
    "ITEM_TOWER",
    "RANKER",
    "USER_TOWER",
    "Exported",
    "arrays_of",
    "exported",
    "item_examples",
    "ranker_examples",
    "user_examples",
]

USER_TOWER, ITEM_TOWER, RANKER = "user_tower.onnx", "item_tower.onnx", "ranker.onnx"
OUTPUTS = {USER_TOWER: "user_vectors", ITEM_TOWER: "item_vectors", RANKER: "heads"}
"Output name of each graph."
EXAMPLES = 256
"Number of input rows that a graph is checked with."
Inputs = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Exported:
    """Exported graphs, and their differences from the modules."""

    graphs: dict[str, bytes]
    parity: float
    "Largest difference between torch and ONNX Runtime."
    half: float | None
    "Change by half precision as a fraction of the largest output; None where the graphs are in full precision."


def arrays_of(made: Retrieval, content: Content, projections: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Arrays of a release, by file name. `projections` are by modality."""
    return {
        "item_vectors.npy": made.vectors,
        "text.npy": unit_rows(content.text),
        "image.npy": unit_rows(content.image),
        "present.npy": content.present > 0,
        "met.npy": made.met,
        "ease_index.npy": made.ease_index,
        "ease_weight.npy": made.ease_weight,
        **({} if made.transitions is None else made.transitions.arrays()),
        **{f"{modality}_projection.npy": np.asarray(fitted) for modality, fitted in projections.items()},
    }


def exported(modules: Sequence[tuple[str, nn.Module, Inputs]], *, half: bool) -> Exported:
    """Export each module as the graph of that name, checked on batches of its inputs.

    Raises:
        ReleaseRejected: a graph differs too much from its module, or its half-precision form from the graph.
    """
    graphs: dict[str, bytes] = {}
    worst, share = 0.0, 0.0
    for name, module, inputs in modules:
        graphs[name], difference = to_onnx(module, inputs, OUTPUTS[name])
        worst = max(worst, difference)
    if half:
        for name, _, inputs in modules:
            graphs[name], changed = to_half(graphs[name], inputs, name)
            share = max(share, changed)
    return Exported(graphs, worst, share if half else None)


def user_examples(vectors: NDArray[np.float32], rng: np.random.Generator, n: int = EXAMPLES) -> dict[str, NDArray[np.float32]]:
    """Inputs of the user tower: `n` histories of items drawn from `vectors`, of random lengths from 0."""
    mask = (np.arange(LENGTH) >= LENGTH - rng.integers(0, LENGTH + 1, (n, 1))).astype(np.float32)
    history = vectors[rng.integers(0, len(vectors), (n, LENGTH))]
    return {"items": history, "events": rng.random((n, LENGTH, EVENT_WIDTH), np.float32), "mask": mask}


def item_examples(content: Content, rng: np.random.Generator, n: int = EXAMPLES) -> dict[str, NDArray[np.float32]]:
    """Inputs of the item tower: the content of `n` items drawn at random."""
    picked = rng.integers(0, len(content.hashed), n)
    fields = zip(("content", "text", "image", "present"), content.arrays(), strict=True)
    return {name: array[picked] for name, array in fields}


def ranker_examples(ranker: Ranker, rng: np.random.Generator, n: int = EXAMPLES) -> dict[str, NDArray[np.float32]]:
    """Inputs of a ranker: `n` rows of features, distributed as in its training, where some were constant."""
    scale = ranker.scale.detach().numpy()
    spread = rng.normal(0, 1, (n, len(scale))).astype(np.float32)
    return {"features": spread * np.where(scale < CONSTANT, scale, np.float32(0)) + ranker.mean.detach().numpy()}
