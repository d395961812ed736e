"""Training and export on a GPU agree with a CPU: the same loss up to rounding, the same answers."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from PIL import Image
from tower_corpus import tower_corpus

from models.release.graphs import session_of
from models.release.sequences import EVENT_WIDTH, LENGTH
from training.encoders import image, text
from training.encoders.encoder import Encoder
from training.encoders.image import ImageEncoder
from training.encoders.text import TextEncoder
from training.loop import group as distributed
from training.ranking.choice import listwise_ndcg
from training.ranking.examples import Examples
from training.ranking.fit import train_ranker
from training.recipe import KINDS, RankerSettings, TowerSettings
from training.release.export import HALF_PARITY, to_half, to_onnx
from training.retrieval.fit_towers import event_columns, train_towers
from training.retrieval.towers import ItemTower, UserTower, item_vectors

# without random draws on the device, which differ from the CPU's
SETTINGS = TowerSettings(dimensions=8, blocks=1, epochs=2, batch=8, rate=1e-2, dropout=0.0, hidden_ids=0.0, hidden_content=0.0)

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here")
onnx_cuda = pytest.mark.skipif("CUDAExecutionProvider" not in ort.get_available_providers(), reason="no onnxruntime-gpu here")


def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.Group, "device", torch.device("cpu"))


def loss(user: UserTower, item: ItemTower) -> float:
    """Loss of predicting each user's last event from the one before it, over the catalogue."""
    table, content = tower_corpus()
    vectors, columns = (
        torch.from_numpy(item_vectors(item, content, np.zeros(len(content.text), np.bool_))),
        torch.from_numpy(event_columns(table)),
    )
    losses = []
    for person in np.unique(table.user):
        mine = np.flatnonzero(table.user == person)[-LENGTH - 1 :]
        past, last = mine[:-1], mine[-1]
        items, events = torch.zeros(1, LENGTH, vectors.shape[1]), torch.zeros(1, LENGTH, EVENT_WIDTH)
        mask = torch.zeros(1, LENGTH)
        n = len(past)
        items[0, LENGTH - n :], events[0, LENGTH - n :] = vectors[table.item[past]], columns[past]
        mask[0, LENGTH - n :] = 1
        with torch.inference_mode():
            logits = user(items, events, mask) @ vectors.T
        losses.append(float(F.cross_entropy(logits, torch.tensor([int(table.item[last])]))))
    return float(np.mean(losses))


def test_the_loss_tells_trained_towers_from_untrained_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison below relies on this, with or without a GPU."""
    on_cpu(monkeypatch)
    table, content = tower_corpus()
    trained = train_towers(table, content, SETTINGS)
    torch.manual_seed(1)
    fresh = UserTower(SETTINGS).eval(), ItemTower(len(content.hashed), 6, 4, SETTINGS.dimensions).eval()
    assert loss(*trained) < 0.95 * loss(*fresh)


@cuda
def test_towers_trained_on_cuda_learn_what_they_learn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    table, content = tower_corpus()
    assert distributed.Group.current().device.type == "cuda"
    there = train_towers(table, content, SETTINGS)
    assert all(parameter.device.type == "cpu" for tower in there for parameter in tower.parameters())
    on_cpu(monkeypatch)
    here = train_towers(table, content, SETTINGS)
    assert loss(*there) == pytest.approx(loss(*here), rel=0.02)


def likes_by_two_features(queries: int) -> Examples:
    rng = np.random.default_rng(0)
    shape = queries, 12
    features = rng.normal(size=(*shape, 6)).astype(np.float32)
    liked = rng.random(shape) < 1 / (1 + np.exp(1 - 2 * features[..., 0] * features[..., 1]))
    labels = np.stack([liked, features[..., 2] > 0], axis=-1).astype(np.float32)
    none, there = np.zeros(shape, np.float32), np.ones(shape, np.bool_)
    return Examples(features, labels, labels[..., 0], there, none, np.zeros(queries, np.bool_))


@cuda
@pytest.mark.parametrize("kind", KINDS)
def test_a_ranker_trained_on_cuda_orders_as_one_of_the_cpu(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    examples = likes_by_two_features(700)
    settings = RankerSettings(kind=kind, width=32, experts=2, batch=32, rate=1e-2, dropout=0.0)
    there = train_ranker(examples, settings)
    assert all(parameter.device.type == "cpu" for parameter in there.parameters())
    on_cpu(monkeypatch)
    here = train_ranker(examples, settings)
    assert listwise_ndcg(here, examples) > 0.75
    assert listwise_ndcg(there, examples) == pytest.approx(listwise_ndcg(here, examples), abs=0.01)


@cuda
@pytest.mark.parametrize("kind", ["text", "image"])
def test_vectors_encoded_on_cuda_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    make: Callable[[], Encoder] = TextEncoder if kind == "text" else ImageEncoder
    contents = [f"{n} kites over {'a quiet ' * n}sea".encode() for n in range(1, 9)] if kind == "text" else drawn_images(8)
    there, readable = make().encode(contents)
    for module in (image, text):
        monkeypatch.setattr(module, "gpu", lambda: False)
    here, same = make().encode(contents)
    assert readable.all()
    assert same.all()
    assert float((there * here).sum(axis=1).min()) > 0.9999  # cosine: both have length 1


def drawn_images(count: int) -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8)).resize((160, 120))
        coarse.save(file := io.BytesIO(), "PNG")
        found.append(file.getvalue())
    return found


@onnx_cuda
@pytest.mark.parametrize("half", [False, True])
def test_exported_graphs_give_on_cuda_what_they_give_on_the_cpu(half: bool) -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    user = UserTower(SETTINGS).eval()
    inputs = {
        "items": rng.normal(size=(64, LENGTH, SETTINGS.dimensions + 1)).astype(np.float32) * 0.1,
        "events": rng.random((64, LENGTH, EVENT_WIDTH), np.float32),
        "mask": (np.arange(LENGTH) >= LENGTH - rng.integers(0, LENGTH + 1, (64, 1))).astype(np.float32),
    }
    graph, _ = to_onnx(user, inputs, "user_vectors")
    make: Callable[[bytes], bytes] = (lambda g: to_half(g, inputs, "user_vectors")[0]) if half else (lambda g: g)
    session = session_of(made := make(graph), 1)
    assert session.get_providers()[0] == "CUDAExecutionProvider"
    expected = ort.InferenceSession(made, providers=["CPUExecutionProvider"]).run(None, inputs)[0]
    allowed = (HALF_PARITY if half else 1e-5) * float(np.abs(expected).max())
    assert float(np.abs(session.run(None, inputs)[0] - expected).max()) <= allowed
