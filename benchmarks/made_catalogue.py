"""A made catalogue: items, a release over them and users with histories, clustered as real ones are.

Items belong to clusters whose sizes follow a Zipf law. An item's vectors are its cluster's plus noise, its words and categories
are mostly its cluster's, and its neighbours are of its cluster. Users have histories in few clusters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from models.features.compute import FEATURES, SPEC
from models.items.store import TEXT_DIMENSIONS
from models.items.vectors import MODALITIES, unit_rows
from models.release.release import FORMAT, WITH_TRANSITIONS, Head, Manifest, write_release
from models.release.sequences import EVENT_WIDTH, LENGTH
from models.release.transitions import Transitions
from schemas.codec import encode
from schemas.columns import EventColumns
from schemas.records import Interaction

DIMENSIONS, TEXT, IMAGE, NEAR = 64, 64, 64, 32
BASE_MS = 1_700_000_000_000
WORDS = 20_000
FOLLOWERS, LAGS = 64, 5


def clusters_of(n: int) -> NDArray[np.int64]:
    """Cluster of each item: `(n,)`, 40 to 4,000 clusters."""
    count = int(np.clip(n // 250, 40, 4_000))
    weights = 1 / np.arange(1, count + 1) ** 0.5
    return np.random.default_rng(1).choice(count, n, p=weights / weights.sum())


def _near(cluster: NDArray[np.int64], width: int, seed: int, noise: float = 0.7) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(int(cluster.max()) + 1, width)).astype(np.float32)
    found = centres[cluster]
    found += np.float32(noise) * rng.standard_normal(found.shape, np.float32)
    found *= np.float32(1 / np.sqrt(width))
    return found


def entries(cluster: NDArray[np.int64]) -> tuple[list[bytes], list[bytes]]:
    """Keys and values of the items topic."""
    rng, n = np.random.default_rng(2), len(cluster)
    own = rng.integers(0, WORDS, (int(cluster.max()) + 1, 24))
    words = [f"word{k}" for k in range(WORDS)]
    title, body = rng.integers(0, 24, (n, 4)), rng.integers(0, 24, (n, 16))
    stray, price = rng.integers(0, WORDS, (n, 6)), rng.lognormal(3, 1, n)
    published = BASE_MS - rng.integers(0, 3 * 365 * 86_400_000, n)
    keys, values = [], []
    for i in range(n):
        mine, item_id = own[cluster[i]], f"item-{i:08d}"
        text = [words[w] for w in (*mine[body[i]], *stray[i])]
        item = {
            "item_id": item_id,
            "title": " ".join(words[w] for w in mine[title[i]]),
            "text": " ".join(text),
            "categories": [f"category {cluster[i]}", f"department {cluster[i] % 40}"],
            "image": None,
            "price": float(round(price[i], 2)),
            "available": True,
            "published_at": int(published[i]),
            "attributes": {"brand": f"brand {stray[i, 0] % 997}"},
        }
        keys.append(item_id.encode())
        values.append(encode("item", item))
    return keys, values


def _graph(
    nodes: list[Any], inputs: dict[str, tuple[int, ...]], output: str, width: int, constants: dict[str, NDArray[Any]]
) -> bytes:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape]) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(values, name) for name, values in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def _graphs() -> dict[str, bytes]:
    """Plain graphs: a user is the mean of their items; a new item's vector follows from its words; the ranker is linear."""
    d, rng, node = DIMENSIONS + 1, np.random.default_rng(3), helper.make_node
    user = [
        node("ReduceSum", ["items", "one"], ["sum"], keepdims=0),
        node("ReduceSum", ["mask", "one"], ["count"], keepdims=1),
        node("Add", ["count", "least"], ["all"]),
        node("Div", ["sum", "all"], ["mean"]),
        node("ReduceSum", ["events", "both"], ["seen"], keepdims=0),
        node("Mul", ["seen", "nothing"], ["gone"]),
        node("Unsqueeze", ["gone", "one"], ["none"]),
        node("Add", ["mean", "none"], ["user_vectors"]),
    ]
    constants = {
        "one": np.asarray([1], np.int64),
        "both": np.asarray([1, 2], np.int64),
        "least": np.asarray([1e-3], np.float32),
        "nothing": np.zeros(1, np.float32),
    }
    shapes: dict[str, tuple[int, ...]] = {"items": (LENGTH, d), "events": (LENGTH, EVENT_WIDTH), "mask": (LENGTH,)}
    item = [
        node("Concat", ["content", "text", "image", "present"], ["every"], axis=1),
        node("MatMul", ["every", "w"], ["item_vectors"]),
    ]
    width = TEXT_DIMENSIONS + TEXT + IMAGE + len(MODALITIES)
    widths: dict[str, tuple[int, ...]] = {
        "content": (TEXT_DIMENSIONS,),
        "text": (TEXT,),
        "image": (IMAGE,),
        "present": (len(MODALITIES),),
    }
    ranker = [
        node("MatMul", ["features", "w1"], ["hidden"]),
        node("Tanh", ["hidden"], ["bent"]),
        node("MatMul", ["bent", "w2"], ["logits"]),
        node("Sigmoid", ["logits"], ["heads"]),
    ]
    drawn = {"w1": rng.normal(0, 0.05, (len(FEATURES), 64)), "w2": rng.normal(0, 0.3, (64, 2))}
    return {
        "user_tower.onnx": _graph(user, shapes, "user_vectors", d, constants),
        "item_tower.onnx": _graph(item, widths, "item_vectors", d, {"w": rng.normal(0, 0.02, (width, d)).astype(np.float32)}),
        "ranker.onnx": _graph(
            ranker,
            {"features": (len(FEATURES),)},
            "heads",
            2,
            {name: array.astype(np.float32) for name, array in drawn.items()},
        ),
    }


def release(folder: Path, cluster: NDArray[np.int64], *, transitions: bool = False) -> Path:
    """Write a release over the items below `folder`, with transitions if wanted; returns its folder."""
    n, rng = len(cluster), np.random.default_rng(4)
    by_cluster, starts = np.argsort(cluster, kind="stable"), np.searchsorted(np.sort(cluster), np.arange(cluster.max() + 2))
    sizes = np.diff(starts)[cluster]
    picked = starts[cluster][:, None] + rng.integers(0, sizes[:, None], (n, NEAR))
    arrays: dict[str, NDArray[Any]] = {
        "item_vectors.npy": np.concatenate(
            [_near(cluster, DIMENSIONS, 5), 0.3 * rng.standard_normal((n, 1), np.float32)], axis=1
        ),
        "text.npy": unit_rows(_near(cluster, TEXT, 6)),
        "image.npy": unit_rows(_near(cluster, IMAGE, 7)),
        "present.npy": np.ones((n, 2), np.bool_),
        "met.npy": np.ones(n, np.bool_),
        "ease_index.npy": by_cluster[picked].astype(np.int32),
        "ease_weight.npy": np.sort(rng.random((n, NEAR), np.float32), axis=1)[:, ::-1],
        "text_projection.npy": np.zeros((65, TEXT), np.float32),
        "image_projection.npy": np.zeros((65, IMAGE), np.float32),
    }
    if transitions:
        picked = starts[cluster][:, None] + rng.integers(0, sizes[:, None], (n, FOLLOWERS))
        weights = np.sort(rng.random((n, FOLLOWERS), np.float32), axis=1)[:, ::-1]
        lags = np.float32(0.4) ** np.arange(LAGS, dtype=np.float32)
        arrays |= Transitions(by_cluster[picked].astype(np.int32), weights, lags).arrays()
    light = {
        "popular": 0.3,
        "covisitation": 0.5,
        "ease": 1.0,
        "learned": 1.0,
        "content": 0.5,
        "fresh": 0.1,
        **({"transitions": 1.0} if transitions else {}),
    }
    manifest = Manifest(
        "made",
        SPEC,
        (Head("positive", 1.0), Head("view", 0.1)),
        "action == 'like'",
        ("view", "like"),
        0.0,
        1.0,
        light,
        BASE_MS,
        n,
        format=WITH_TRANSITIONS if transitions else FORMAT,
    )
    return write_release(folder, manifest, arrays, _graphs(), [f"item-{i:08d}" for i in range(n)])


def histories(cluster: NDArray[np.int64], users: int, length: int) -> EventColumns:
    """Events of users in stream order, most of them in three clusters of each user's own, items by a Zipf law within them."""
    rng = np.random.default_rng(8)
    by_cluster, starts = np.argsort(cluster, kind="stable"), np.searchsorted(np.sort(cluster), np.arange(cluster.max() + 2))
    made, n = [], users * length
    own = cluster[rng.integers(0, len(cluster), (users, 3))]
    who, which, within, stray = rng.integers(0, users, n), rng.integers(0, 3, n), rng.zipf(1.3, n), rng.random(n)
    anything = rng.integers(0, len(cluster), n)
    for e in range(n):
        mine = own[who[e], which[e]]
        item = by_cluster[starts[mine] + within[e] % (starts[mine + 1] - starts[mine])] if stray[e] < 0.8 else anything[e]
        made.append(Interaction(f"e{e}", f"u{who[e]}", f"item-{item:08d}", BASE_MS + 1_000 * e, "like" if e % 3 else "view"))
    return EventColumns.of(made, np.arange(n))
