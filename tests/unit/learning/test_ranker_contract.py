"""The contract of rankers: the same tests for every kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from learning_corpus import SMALL
from numpy.typing import NDArray

from agents.cli.release import train
from models.features.compute import FEATURES
from models.release.release import Release
from models.release.serving import ServingModel
from schemas.errors import BadDataset, ConfigError, ReleaseRejected
from training.ranking.base import Ranker
from training.ranking.calibrate import reliability
from training.ranking.choice import listwise_ndcg
from training.ranking.examples import Examples
from training.ranking.fit import train_ranker
from training.ranking.kinds import make_ranker
from training.recipe import KINDS, RankerSettings
from training.release import export
from training.release.export import to_half, to_onnx
from training.release.learned import Learned

F, C = 6, 12
SETTINGS = RankerSettings(width=32, experts=2, epochs=12, batch=32, rate=1e-2, dropout=0.0)

pytestmark = pytest.mark.parametrize("kind", KINDS)


def drawn(queries: int, seed: int = 0) -> Examples:
    """Draw examples whose likes follow a product of two features; the second head follows one feature's sign."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(queries, C, F)).astype(np.float32) * 10 + 5
    features[..., 5] = 1.0
    z = (features - 5) / 10
    chance = 1 / (1 + np.exp(-(2 * z[..., 0] * z[..., 1] - 1)))
    liked = rng.random(chance.shape) < chance
    labels = np.stack([liked, z[..., 2] > 0], axis=-1).astype(np.float32)
    valid = np.ones((queries, C), np.bool_)
    none = np.zeros((queries, C), np.float32)
    return Examples(features, labels, labels[..., 0], valid, none, np.zeros(queries, np.bool_))


def flat(examples: Examples) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(examples.features.reshape(-1, F)))


def told(ranker: Ranker, examples: Examples) -> NDArray[np.float32]:
    with torch.inference_mode():
        found: NDArray[np.float32] = ranker(flat(examples)).numpy()
    return found


def auc(scores: NDArray[np.float32], labels: NDArray[np.float32]) -> float:
    ranks = np.argsort(np.argsort(scores)) + 1.0
    positive = labels > 0
    n = positive.sum()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(labels) - n)))


@pytest.fixture(scope="module")
def trained() -> dict[str, Ranker]:
    torch.set_num_threads(1)
    return {kind: train_ranker(drawn(700), replace(SETTINGS, kind=kind)) for kind in KINDS}


def test_it_learns_crosses_and_each_heads_own_task(kind: str, trained: dict[str, Ranker]) -> None:
    fresh = drawn(200, 9)
    heads, labels = told(trained[kind], fresh), fresh.labels.reshape(-1, 2)
    assert auc(heads[:, 0], labels[:, 0]) > 0.78  # the true probabilities give 0.806
    assert auc(heads[:, 1], labels[:, 1]) > 0.97


def test_that_shown_items_are_taken_more_often_says_nothing_of_the_others(kind: str) -> None:
    """Slates show items that retrieval does not, and shown items get more actions; neither must raise an item's score."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(3)
    examples, fresh = drawn(800, 4), drawn(200, 5)
    examples.exposed = rng.random(800) < 0.5
    for part in (examples, fresh):
        part.features[..., 4] = rng.normal(size=part.features.shape[:2])
    examples.features[examples.exposed, :, 4] += 3
    chance = 1 / (1 + np.exp(-(examples.features[..., 4] * -1.0 + np.where(examples.exposed, 6.0, -1.0)[:, None])))
    examples.labels[..., 1] = rng.random(chance.shape) < chance
    wanted = rng.random(fresh.labels.shape[:2]) < 1 / (1 + np.exp(fresh.features[..., 4] + 1))
    heads = told(train_ranker(examples, replace(SETTINGS, kind=kind, width=16)), fresh)
    assert auc(heads[:, 1], wanted.reshape(-1).astype(np.float32)) > 0.65


def test_a_head_of_a_rare_action_learns_from_few_queries(kind: str) -> None:
    """Initial log odds represent the rarity, so that the weights need not learn it from the features."""
    torch.set_num_threads(1)

    def rare(examples: Examples, seed: int) -> Examples:
        z = (examples.features[..., 1] - 5) / 10
        chance = np.minimum(0.004 * np.exp(1.5 * z), 1.0)
        examples.labels[..., 1] = np.random.default_rng(seed).random(z.shape) < chance
        return examples

    few = replace(SETTINGS, kind=kind, epochs=10, rate=4e-3, width=16)
    ranker, fresh = train_ranker(rare(drawn(400, 6), 1), few), rare(drawn(2_000, 7), 2)
    assert auc(told(ranker, fresh)[:, 1], fresh.labels.reshape(-1, 2)[:, 1]) > 0.7


def test_how_high_it_puts_what_has_gains_equals_a_plain_recomputation(kind: str, trained: dict[str, Ranker]) -> None:
    examples = drawn(40, 11)
    rng = np.random.default_rng(0)
    examples.gains[:] = np.where(rng.random(examples.gains.shape) < 0.2, rng.random(examples.gains.shape), 0)
    examples.valid[:, 9:] = False
    examples.gains[:, 9:] = 0
    scores, found = told(trained[kind], examples)[:, 0].reshape(examples.gains.shape), []
    for score, gain in zip(scores[:, :9], examples.gains[:, :9], strict=True):
        order, best = np.argsort(-score, kind="stable"), np.sort(gain)[::-1]
        discounted = [sum(g / np.log2(n + 2) for n, g in enumerate(gains)) for gains in (gain[order], best)]
        if discounted[1] > 0:
            found.append(discounted[0] / discounted[1])
    assert listwise_ndcg(trained[kind], examples) == pytest.approx(np.mean(found), abs=1e-5)
    assert listwise_ndcg(trained[kind], examples.take(slice(0, 0))) == 0


def test_its_probabilities_hold(kind: str, trained: dict[str, Ranker]) -> None:
    fresh = drawn(300, 8)
    heads, labels = told(trained[kind], fresh), fresh.labels.reshape(-1, 2)
    assert ((heads >= 0) & (heads <= 1)).all()
    assert heads.mean(axis=0) == pytest.approx(labels.mean(axis=0), abs=0.05)
    for bins in reliability(trained[kind], drawn(2_000, 7)):
        assert sum(b["weight"] for b in bins) == 200 * C, "of the later tenth"
        assert [b["predicted"] for b in bins] == sorted(b["predicted"] for b in bins)
        gap = sum(b["weight"] * abs(b["predicted"] - b["observed"]) for b in bins) / sum(b["weight"] for b in bins)
        assert gap < 0.08, gap
    assert (trained[kind].platt[0] > 0).all(), "calibration keeps the order"


def test_the_same_seed_gives_the_same_ranker(kind: str) -> None:
    torch.set_num_threads(1)
    short = replace(SETTINGS, kind=kind, epochs=1, dropout=0.2)
    first, again, other = (train_ranker(drawn(60), s).state_dict() for s in (short, short, replace(short, seed=1)))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_feature_that_never_varied_moves_no_score(kind: str, trained: dict[str, Ranker]) -> None:
    fresh = drawn(10, 3)
    before = told(trained[kind], fresh)
    fresh.features[..., 5] = 40.0
    assert told(trained[kind], fresh) == pytest.approx(before, abs=1e-6)


def test_scores_are_finite_and_do_not_depend_on_the_batch(kind: str, trained: dict[str, Ranker]) -> None:
    fresh = drawn(10, 4)
    fresh.features[:5] *= 1e6
    together = told(trained[kind], fresh)
    assert np.isfinite(together).all()
    assert together[:C] == pytest.approx(told(trained[kind], fresh.take(slice(0, 1))), abs=1e-6)


def test_onnx_gives_what_torch_gives_at_any_batch_size(kind: str, trained: dict[str, Ranker]) -> None:
    fresh = drawn(30, 5)
    seen = flat(fresh).numpy()
    # also exactly on the bounds of intervals
    seen = np.concatenate([seen, np.quantile(seen, np.arange(1, 16) / 16, axis=0)])
    inputs = {"features": seen[-200:].astype(np.float32)}
    graph, worst = to_onnx(trained[kind], inputs, "heads", checks=(1, 2, 200))
    assert worst <= 1e-5
    half, share = to_half(graph, inputs, "heads", checks=(1, 2, 200))
    assert 0 < share <= 1e-2
    assert len(half) < len(graph)
    kinds = {tensor.data_type for tensor in onnx.load_from_string(half).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
    found = ort.InferenceSession(half, providers=["CPUExecutionProvider"]).run(None, inputs)[0]
    whole = ort.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, inputs)[0]
    assert found.dtype == np.float32
    best = np.argsort(-whole[:, 0])[:20]
    assert len(np.intersect1d(best, np.argsort(-found[:, 0])[:20])) >= 18, "nearly the same items come first"


def test_half_precision_that_is_too_coarse_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"x": np.ones((4, 3), np.float32)}
    graph, _ = to_onnx(torch.nn.Linear(3, 2), inputs, "heads")
    monkeypatch.setattr(export, "HALF_PARITY", 1e-7)
    with pytest.raises(ReleaseRejected, match="half precision"):
        to_half(graph, inputs, "heads")


def test_it_serves_in_a_release(kind: str, learned: Learned) -> None:
    torch.manual_seed(0)
    heads = len(learned.manifest.heads)
    ranker = make_ranker(len(FEATURES), heads, replace(SMALL.ranker, kind=kind)).eval()
    inputs = {"features": np.random.default_rng(0).normal(size=(64, len(FEATURES))).astype(np.float32)}
    whole, _ = to_onnx(ranker, inputs, "heads")
    for graph in (whole, to_half(whole, inputs, "heads")[0]):
        parts = {**learned.graphs, "ranker.onnx": graph}
        model = ServingModel(Release(learned.manifest, learned.arrays, parts, learned.item_ids))
        assert model.rank(inputs["features"]).shape == (64, heads)


def test_a_kind_has_a_class_of_its_own_and_is_named_where_commands_are_described(kind: str) -> None:
    made = {each: type(make_ranker(F, 2, replace(SETTINGS, kind=each))) for each in KINDS}
    assert [each for each in KINDS if made[each] is made[kind]] == [kind], "training.ranking.kinds"
    assert train.help is not None
    assert kind in train.help.partition("--ranker KIND")[2].partition("\n")[0]


def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="no ranker"):
        RankerSettings(kind=f"{kind}2")


def test_without_examples_it_says_what_is_missing(kind: str) -> None:
    with pytest.raises(BadDataset, match="first interaction"):
        train_ranker(drawn(3).take(slice(0, 0)), replace(SETTINGS, kind=kind))
