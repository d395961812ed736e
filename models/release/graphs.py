"""The three graphs of a release, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from schemas.errors import ReleaseRejected

__all__ = ["Graphs", "OnnxGraphs", "session_of"]

Array = NDArray[np.float32]


class Graphs(Protocol):
    """What a release computes. All arrays are float32, and the first dimension is the batch."""

    def user(self, items: Array, events: Array, mask: Array) -> Array:
        """User vectors `(n, d)` of histories: item vectors `(n, LENGTH, d)`, `(n, LENGTH, EVENT_WIDTH)`, `(n, LENGTH)`."""

    def item(self, content: Array, text: Array, image: Array, present: Array) -> Array:
        """Item vectors `(n, d)` of contents: hashed words, text and image vectors, and which of these two are present."""

    def rank(self, features: Array) -> Array:
        """Calibrated probability per head, `(n, heads)`, of features `(n, features)`."""


def session_of(graph: bytes, threads: int, *, gpu: bool = True) -> Any:
    """Open an ONNX Runtime session of a self-contained graph; on a GPU if there is one and `gpu` is set."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    providers: list[Any] = ["CPUExecutionProvider"]
    if gpu and "CUDAExecutionProvider" in ort.get_available_providers():
        # full float32 products, because with TF32 answers differ by 1e-3 from those of a CPU
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0"}))
    # loaded from bytes, so that a graph that refers to external files fails to load
    return ort.InferenceSession(graph, options, providers=providers)


class OnnxGraphs:
    """`Graphs` of a release, run by ONNX Runtime on a GPU or with `threads` threads."""

    def __init__(self, name: str, graphs: Mapping[str, bytes], threads: int = 1) -> None:
        """Open the graphs, which are by file name. `name`: the release's.

        Raises:
            ReleaseRejected: a graph is missing or cannot be loaded.
        """
        try:
            self._user, self._item, self._ranker = (
                session_of(graphs[f"{part}.onnx"], threads) for part in ("user_tower", "item_tower", "ranker")
            )
        except Exception as exc:
            raise ReleaseRejected("graph", f"a graph of release {name} does not run: {exc}") from exc

    def user(self, items: Array, events: Array, mask: Array) -> Array:
        """See `Graphs.user`."""
        return _first(self._user, items=items, events=events, mask=mask)

    def item(self, content: Array, text: Array, image: Array, present: Array) -> Array:
        """See `Graphs.item`."""
        return _first(self._item, content=content, text=text, image=image, present=present)

    def rank(self, features: Array) -> Array:
        """See `Graphs.rank`."""
        return _first(self._ranker, features=features)


def _first(session: Any, **inputs: Array) -> Array:
    found: Array = session.run(None, inputs)[0]
    return found
