"""The three graphs of a release, run by ONNX Runtime."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.release.sequences import LENGTH
from schemas.errors import ReleaseRejected

__all__ = ["Graphs", "OnnxGraphs", "Provider", "first_output", "session_of"]

Array = NDArray[np.float32]


class Graphs(Protocol):
    """What a release computes. All arrays are float32, and the first dimension is the batch."""

    def user(self, items: Array, events: Array, mask: Array) -> Array:
        """User vectors `(n, d)` of histories: item vectors `(n, l, d)`, `(n, l, EVENT_WIDTH)`, `(n, l)`.

        `l`: LENGTH, or a smaller multiple of STEP where all histories are shorter.
        """

    def item(self, content: Array, text: Array, image: Array, present: Array) -> Array:
        """Item vectors `(n, d)` of contents: hashed words, text and image vectors, and which of these two are present."""

    def rank(self, features: Array) -> Array:
        """Calibrated probability per head, `(n, heads)`, of features `(n, features)`."""


class Provider(enum.Enum):
    """What runs a graph. Each falls back to the next that this installation of ONNX Runtime has, at last to the CPU."""

    TENSORRT = "tensorrt"
    CUDA = "cuda"
    CPU = "cpu"
    AUTO = "auto"
    "CUDA, or the CPU. TensorRT is only used when named, because it compiles an engine for minutes before a release serves."


def _providers(provider: Provider, cache: Path | None) -> list[Any]:
    import onnxruntime as ort

    there, wanted = ort.get_available_providers(), list[Any]()
    if provider is Provider.TENSORRT and "TensorrtExecutionProvider" in there:
        options = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(cache), "trt_timing_cache_enable": "1"}
        wanted.append(("TensorrtExecutionProvider", options if cache is not None else {}))
    if provider is not Provider.CPU and "CUDAExecutionProvider" in there:
        # full float32 products, because with TF32 answers differ by 1e-3 from those of a CPU
        wanted.append(("CUDAExecutionProvider", {"use_tf32": "0"}))
    return [*wanted, "CPUExecutionProvider"]


def session_of(graph: bytes, threads: int, *, provider: Provider = Provider.AUTO, cache: Path | None = None) -> Any:
    """Open an ONNX Runtime session of a self-contained graph.

    `threads`: of a CPU. `cache`: folder in which TensorRT keeps compiled engines.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # loaded from bytes, so that a graph that refers to external files fails to load
    return ort.InferenceSession(graph, options, providers=_providers(provider, cache))


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
            self._length = _fixed_length(self._user)
        except Exception as exc:
            raise ReleaseRejected("graph", f"a graph of release {name} does not run: {exc}") from exc

    def user(self, items: Array, events: Array, mask: Array) -> Array:
        """See `Graphs.user`."""
        if (missing := self._length - mask.shape[1]) > 0:
            items, events = (np.pad(part, ((0, 0), (missing, 0), (0, 0))) for part in (items, events))
            mask = np.pad(mask, ((0, 0), (missing, 0)))
        return first_output(self._user, items=items, events=events, mask=mask)

    def item(self, content: Array, text: Array, image: Array, present: Array) -> Array:
        """See `Graphs.item`."""
        return first_output(self._item, content=content, text=text, image=image, present=present)

    def rank(self, features: Array) -> Array:
        """See `Graphs.rank`."""
        return first_output(self._ranker, features=features)


def _fixed_length(session: Any) -> int:
    """Return the only length of histories that a user tower's graph reads, 0 if it reads any up to LENGTH.

    A GPU gets one length, because TensorRT would compile an engine for each.
    """
    (mask,) = (given for given in session.get_inputs() if given.name == "mask")
    length = mask.shape[1]
    if isinstance(length, int):
        return length
    return 0 if session.get_providers() == ["CPUExecutionProvider"] else LENGTH


def first_output(session: Any, **inputs: Array) -> Array:
    """Run a session, and return its first output."""
    found: Array = session.run(None, inputs)[0]
    return found
