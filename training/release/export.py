"""Export from torch to ONNX, with a check that graph and module give the same outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

from schemas.errors import ReleaseRejected
from training.release.graphs import graph_of

__all__ = ["HALF_PARITY", "PARITY", "to_half", "to_onnx"]

PARITY = 1e-4
"Largest allowed difference between torch and ONNX Runtime."
HALF_PARITY = 1e-2
"Largest allowed difference between a graph and its half-precision form, as a fraction of the largest output."


def to_onnx(
    module: nn.Module, inputs: Mapping[str, NDArray[np.float32]], output: str, checks: Sequence[int] = (1, 7, 64)
) -> tuple[bytes, float]:
    """Export a module as a graph with a dynamic first dimension. Also returns the largest difference on random batches.

    `inputs`: example arrays by input name, in the order of the module's arguments; the checks sample from them.
    Of a module with a method `served` the graph is that of what this returns, and is compared with the module itself.

    Raises:
        ReleaseRejected: the difference is above PARITY.
    """
    module = module.eval()
    served: nn.Module = getattr(module, "served", lambda: module)()
    graph = _anonymous(graph_of(served.eval(), inputs, output))
    session = _session(graph)
    worst = 0.0
    for feeds in _batches(inputs, checks):
        with torch.inference_mode():
            expected = module(*(torch.from_numpy(array) for array in feeds.values())).numpy()
        worst = max(worst, float(np.abs(session.run(None, feeds)[0] - expected).max()))
    if not worst <= PARITY:
        raise ReleaseRejected("parity", f"{output}: ONNX differs from torch by {worst:.2e}, allowed {PARITY:.0e}", output)
    return graph, worst


def _session(graph: bytes) -> ort.InferenceSession:
    return ort.InferenceSession(graph, providers=["CPUExecutionProvider"])


def _batches(inputs: Mapping[str, NDArray[np.float32]], checks: Sequence[int]) -> Iterator[dict[str, NDArray[np.float32]]]:
    rng = np.random.default_rng(0)
    for n in checks:
        drawn = rng.integers(0, len(next(iter(inputs.values()))), n)
        yield {name: np.ascontiguousarray(array[drawn]) for name, array in inputs.items()}


def to_half(
    graph: bytes, inputs: Mapping[str, NDArray[np.float32]], output: str, checks: Sequence[int] = (1, 7, 64)
) -> tuple[bytes, float]:
    """Convert matrix products to half precision. Also returns the largest difference, as a fraction of the largest output.

    Weights of the products are stored in 16 bits, and a GPU multiplies in 16 bits. Inputs, outputs, sums over fields, norms and
    masks stay in 32 bits, whose range they need. A CPU without 16-bit products computes in 32 bits from the same weights.

    Raises:
        ReleaseRejected: the difference is above HALF_PARITY.
    """
    made = _halved(graph)
    whole, half, worst = _session(graph), _session(made), 0.0
    for feeds in _batches(inputs, checks):
        expected = whole.run(None, feeds)[0]
        share = np.abs(half.run(None, feeds)[0] - expected).max() / max(float(np.abs(expected).max()), 1e-9)
        worst = max(worst, float(share))
    if not worst <= HALF_PARITY:
        message = f"{output}: half precision differs by {worst:.2e} of the largest, allowed {HALF_PARITY:.0e}"
        raise ReleaseRejected("parity", message, output)
    return made, worst


def _halved(graph: bytes) -> bytes:
    model = onnx.load_from_string(graph)
    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    halves: dict[str, str] = {}
    nodes = []
    for node in model.graph.node:
        if node.op_type not in {"MatMul", "Gemm"}:
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if name not in halves:
                halves[name] = f"{name}.half"
                if name in weights:
                    values = onnx.numpy_helper.to_array(weights[name]).astype(np.float16)
                    model.graph.initializer.append(onnx.numpy_helper.from_array(values, halves[name]))
                else:
                    nodes.append(onnx.helper.make_node("Cast", [name], [halves[name]], to=onnx.TensorProto.FLOAT16))
            node.input[place] = halves[name]
        product, node.output[0] = node.output[0], f"{node.output[0]}.product"
        nodes += [node, onnx.helper.make_node("Cast", [node.output[0]], [product], to=onnx.TensorProto.FLOAT)]
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    for field, values in ((model.graph.node, nodes), (model.graph.initializer, kept)):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


def _anonymous(graph: bytes) -> bytes:
    """Remove the exporter's notes on source files from the graph. It is then smaller, and identical wherever it is made."""
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
