"""Laws of graphs that are traced once per architecture."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from models.features.compute import FEATURES
from models.items.store import TEXT_DIMENSIONS
from training.ranking.kinds import KINDS, make_ranker
from training.recipe import RankerSettings, TowerSettings
from training.release import graphs
from training.release.graphs import graph_of
from training.release.parts import user_examples
from training.retrieval.towers import ItemTower, UserTower

N = 8
RNG = np.random.default_rng(0)
INPUTS: dict[str, dict[str, NDArray[np.float32]]] = {
    "user": user_examples(RNG.normal(size=(20, 9)).astype(np.float32), RNG, N),
    "item": {
        name: RNG.normal(size=(N, width)).astype(np.float32)
        for name, width in (("content", TEXT_DIMENSIONS), ("text", 5), ("image", 3), ("present", 2))
    },
    **{kind: {"features": RNG.normal(size=(N, len(FEATURES))).astype(np.float32)} for kind in KINDS},
}


def made(kind: str, seed: int) -> nn.Module:
    """A module with drawn weights; buffers, which follow from the architecture, stay."""
    torch.manual_seed(seed)
    module: nn.Module
    if kind == "user":
        module = UserTower(TowerSettings(dimensions=8, blocks=1))
    elif kind == "item":
        module = ItemTower(20, 5, 3, 8)
    else:
        module = make_ranker(len(FEATURES), 2, RankerSettings(kind=kind, width=8, experts=2))
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(0.1 + 0.3 * torch.rand_like(weight))
    return module.eval()


def answer(graph: bytes, inputs: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)[0]
    return found


@pytest.fixture(autouse=True)
def no_templates() -> Iterator[None]:
    """Templates of this test alone."""
    before = dict(graphs._templates)
    graphs._templates.clear()
    yield
    graphs._templates.clear()
    graphs._templates.update(before)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Types of the modules that were traced."""
    found: list[str] = []
    trace = graphs._traced

    def counted(module: nn.Module, *args: object) -> bytes:
        found.append(type(module).__name__)
        return trace(module, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "_traced", counted)
    return found


@pytest.mark.parametrize("kind", INPUTS)
def test_a_filled_template_is_the_traced_graph_byte_for_byte(kind: str, traced: list[str]) -> None:
    @settings(max_examples=8)
    @given(st.integers(0, 2**16))
    def law(seed: int) -> None:
        module = made(kind, seed)
        filled = graph_of(module, INPUTS[kind], "out")
        with torch.inference_mode():
            expected = module(*map(torch.from_numpy, INPUTS[kind].values())).numpy()
        assert answer(filled, INPUTS[kind]) == pytest.approx(expected, abs=1e-5)

    law()
    assert len(traced) == 1, "only the first of an architecture is traced"
    filled = graph_of(made(kind, 1), INPUTS[kind], "out")
    graphs._templates.clear()
    assert graph_of(made(kind, 1), INPUTS[kind], "out") == filled
    assert len(traced) == 2
    assert graph_of(made(kind, 2), INPUTS[kind], "out") != filled


def test_threads_trace_an_architecture_once_and_keep_at_most_so_many(
    traced: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "KEPT", 1)
    inputs, out = {"x": np.ones((4, 3), np.float32)}, sys.stdout
    torch.manual_seed(0)
    modules = [Scaled(2.0).eval() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda module: answer(graph_of(module, inputs, "out"), inputs), modules))
    assert len(traced) == 1
    assert sys.stdout is out
    for module, said in zip(modules, found, strict=True):
        with torch.inference_mode():
            assert said == pytest.approx(module(torch.ones(4, 3)).numpy(), abs=1e-5)
    graph_of(Scaled(3.0).eval(), inputs, "out")
    assert (len(traced), len(graphs._templates)) == (2, 1)


class Scaled(nn.Module):
    """Its graph depends on an attribute that is no weight."""

    def __init__(self, factor: object) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        factor = self.factor[0] if isinstance(self.factor, list) else self.factor
        out: Tensor = self.linear(x) * factor
        return out


@pytest.mark.parametrize("kept", [2.0, 3, (2.0,)], ids=str)
def test_an_attribute_belongs_to_the_architecture(kept: object, traced: list[str]) -> None:
    inputs = {"x": np.ones((4, 3), np.float32)}
    torch.manual_seed(0)
    module = Scaled(kept if not isinstance(kept, tuple) else list(kept))
    other = Scaled(5.0 if not isinstance(kept, tuple) else [5.0])
    other.load_state_dict(module.state_dict())
    one, two = (answer(graph_of(each, inputs, "out"), inputs) for each in (module, other))
    number = kept[0] if isinstance(kept, tuple) else kept
    assert two == pytest.approx(one / number * 5.0)  # type: ignore[operator]
    assert len(traced) == 2


def test_a_module_whose_attributes_are_not_understood_is_traced_each_time(traced: list[str]) -> None:
    inputs, module = {"x": np.ones((4, 3), np.float32)}, Scaled([2.0])
    first = graph_of(module, inputs, "out")
    module.factor = [4.0]
    assert answer(graph_of(module, inputs, "out"), inputs) == pytest.approx(2 * answer(first, inputs))
    assert len(traced) == 2
    assert not graphs._templates


@pytest.mark.parametrize("changed", ["output", "input", "width", "weight"])
def test_signature_and_shapes_belong_to_the_architecture(changed: str, traced: list[str]) -> None:
    def made_for(width: int) -> tuple[nn.Module, dict[str, NDArray[np.float32]]]:
        return nn.Linear(width, 2), {"x": np.ones((4, width), np.float32)}

    module, inputs = made_for(3)
    graph_of(module, inputs, "out")
    if changed == "output":
        graph_of(module, inputs, "other")
    elif changed == "input":
        graph_of(module, {"y": inputs["x"]}, "out")
    elif changed == "width":
        graph_of(*made_for(4), "out")
    else:
        graph_of(nn.Linear(3, 5), inputs, "out")
    assert len(traced) == 2


def test_the_item_towers_graph_does_not_depend_on_the_number_of_items(traced: list[str]) -> None:
    filled = graph_of(made("item", 0), INPUTS["item"], "out")
    larger = ItemTower(50, 5, 3, 8).eval()
    ids = {"ids.weight": larger.ids.weight, "id_bias.weight": larger.id_bias.weight}
    larger.load_state_dict({**made("item", 0).state_dict(), **ids})
    assert graph_of(larger, INPUTS["item"], "out") == filled
    assert len(traced) == 1


def test_a_part_that_is_said_to_be_unread_and_is_read_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ItemTower, "UNREAD", frozenset({"norm"}))
    with pytest.raises(AssertionError):
        graph_of(made("item", 0), INPUTS["item"], "out")


def test_a_process_keeps_the_templates_that_it_used_last(monkeypatch: pytest.MonkeyPatch, traced: list[str]) -> None:
    monkeypatch.setattr(graphs, "KEPT", 2)
    inputs = {"x": np.ones((4, 3), np.float32)}
    for name in ("a", "b", "a", "c", "a"):
        graph_of(nn.Linear(3, 2), inputs, name)
    assert len(traced) == 3
    assert len(graphs._templates) == 2
    graph_of(nn.Linear(3, 2), inputs, "b")
    assert len(traced) == 4
