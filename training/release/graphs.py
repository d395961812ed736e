"""Graphs of modules, traced once per architecture and process: tracing takes seconds, filling in weights a fraction of one.

A template is the graph before any constant is folded: there every parameter and buffer of the module is an initialiser of its
own, so the weights of another module of the same architecture can take their places. Constants are folded afterwards, for a
traced graph and for a filled template alike. So both give the same bytes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import threading
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["graph_of"]

OPSET = 20
"The first version with an operator for GELU; without it each takes five, and the ranker 1.15 times as long."
KEPT = 16
"Number of templates that a process keeps, most recently used ones."
INTERNAL = frozenset(vars(nn.Module()))
"Attributes that every module has."
PLAIN = (bool, int, float, str, type(None))
"Types of attributes that a module's graph may depend on. A module with another one is traced each time."

_templates: OrderedDict[Hashable, bytes] = OrderedDict()
_tracing = threading.Lock()
"""Held while templates are looked up, traced and kept: an architecture is traced once, and tracing replaces the standard output
and the filters of warnings of the whole process for a moment."""


def graph_of(module: nn.Module, inputs: Mapping[str, NDArray[np.float32]], output: str) -> bytes:
    """Serialised graph of `module`, which is in evaluation mode, with a dynamic first dimension.

    The second dimension of the inputs that the class attribute `VARIED` names is dynamic, too, up to that of `inputs`.
    `inputs`: example arrays by input name, in the order of the module's arguments. Any thread may call this.
    """
    architecture = _architecture(module, inputs, output)
    with _tracing:
        template = None if architecture is None else _templates.get(architecture)
        if template is None:
            template = _traced(module, inputs, output)
        if architecture is not None:
            _templates[architecture] = template
            _templates.move_to_end(architecture)
            while len(_templates) > KEPT:
                _templates.popitem(last=False)
    return _filled(template, module)


def _architecture(module: nn.Module, inputs: Mapping[str, NDArray[np.float32]], output: str) -> Hashable | None:
    """All that the graph depends on except weights; None where that is unknown."""
    parts: list[Hashable] = [output, *((name, array[:2].shape, array.dtype.str) for name, array in inputs.items())]
    unread = _unread(module)
    for path, part in module.named_modules(remove_duplicate=False):
        if path in unread:
            continue
        own = {name: value for name, value in vars(part).items() if name not in INTERNAL}
        if not all(isinstance(value, PLAIN) or _is_plain_tuple(value) for value in own.values()):
            return None
        # with their types, because 1 and True are equal and give different graphs
        parts.append((path, type(part), *((name, type(value), value) for name, value in own.items())))
    weights = ((name, tensor) for name, tensor in _weights(module).items() if name.rpartition(".")[0] not in unread)
    return (*parts, *((name, tuple(tensor.shape), tensor.dtype) for name, tensor in weights))


def _unread(module: nn.Module) -> frozenset[str]:
    """Parts of the module that its graph does not read, from its class attribute `UNREAD`."""
    named: frozenset[str] = getattr(type(module), "UNREAD", frozenset())
    return named


def _is_plain_tuple(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(part, PLAIN) for part in value)


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}


def _traced(module: nn.Module, inputs: Mapping[str, NDArray[np.float32]], output: str) -> bytes:
    arguments = tuple(torch.from_numpy(np.ascontiguousarray(array[:2])) for array in inputs.values())
    batch = torch.export.Dim("n", min=1, max=1 << 20)
    varied: frozenset[str] = getattr(type(module), "VARIED", frozenset())
    shapes: list[dict[int, Any]] = [{0: batch} for _ in inputs]
    if varied:
        places = torch.export.Dim("places", min=2, max=max(inputs[name].shape[1] for name in varied))
        for name, shape in zip(inputs, shapes, strict=True):
            if name in varied:
                shape[1] = places
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            module,
            arguments,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=tuple(shapes),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            optimize=False,
        )
    assert program is not None
    assert not {name.rpartition(".")[0] for name in program.model.graph.initializers} & _unread(module)
    traced: bytes = program.model_proto.SerializeToString()
    return traced


def _filled(template: bytes, module: nn.Module) -> bytes:
    """Replace the template's weights by those of `module`, then fold constants."""
    model, weights = ir.from_proto(onnx.load_from_string(template)), _weights(module)
    for name, value in model.graph.initializers.items():
        if name in weights:  # others are constants of the code
            value.const_value = ir.tensor(weights[name].detach().numpy(), name=name)
    program = torch.onnx.ONNXProgram(model, None)
    program.optimize()
    filled: bytes = program.model_proto.SerializeToString()
    return filled
