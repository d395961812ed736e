"""Torch to ONNX, checked: the graph must give what torch gives."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from schemas.errors import ReleaseRejected

__all__ = ["PARITY", "to_onnx"]

PARITY = 1e-4
"Largest difference allowed between torch and ONNX Runtime."
OPSET = 18


def to_onnx(
    module: nn.Module, inputs: Mapping[str, NDArray[np.float32]], output: str, checks: Sequence[int] = (1, 7, 64)
) -> tuple[bytes, float]:
    """The module as a graph with a dynamic first dimension, and the largest difference from torch over random batches.

    `inputs`: example arrays by input name, in the order of the module's arguments; the checks draw from them.

    Raises:
        ReleaseRejected: the difference is above PARITY.
    """
    module = module.eval()
    arguments = tuple(torch.from_numpy(np.ascontiguousarray(array[:2])) for array in inputs.values())
    batch = torch.export.Dim("n", min=1, max=1 << 20)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            arguments,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        buffer.write(program.model_proto.SerializeToString())
    graph = _anonymous(buffer.getvalue())
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    worst = 0.0
    for n in checks:
        drawn = rng.integers(0, len(next(iter(inputs.values()))), n)
        feeds = {name: np.ascontiguousarray(array[drawn]) for name, array in inputs.items()}
        with torch.inference_mode():
            expected = module(*(torch.from_numpy(array) for array in feeds.values())).numpy()
        worst = max(worst, float(np.abs(session.run(None, feeds)[0] - expected).max()))
    if not worst <= PARITY:
        raise ReleaseRejected("parity", f"{output}: ONNX differs from torch by {worst:.2e}, allowed {PARITY:.0e}", output)
    return graph, worst


def _anonymous(graph: bytes) -> bytes:
    """The graph without what the exporter notes of source files: smaller, and the same wherever it is made."""
    model = onnx.load_from_string(graph)
    del model.metadata_props[:]
    model.doc_string = ""
    for node in (*model.graph.node, *(node for function in model.functions for node in function.node)):
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))
