"""Block-wise item-to-item weights equal the closed form if one block holds all items, else approximate it in less memory."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.retrieval.ease import EaseSettings, ease

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


def tastes(n_users: int, n_items: int, per_user: int, seed: int = 0) -> Pairs:
    """Draw likes: users like items near their own position in three dimensions, popular ones more."""
    rng = np.random.default_rng(seed)
    people, things = rng.normal(size=(n_users, 3)), rng.normal(size=(n_items, 3))
    scores = people @ things.T * 1.5 + rng.gumbel(size=(n_users, n_items)) - 0.7 * np.log1p(np.arange(n_items))
    liked = np.argpartition(-scores, per_user, axis=1)[:, :per_user]
    return np.repeat(np.arange(n_users), per_user), liked.ravel()


def dense(found: tuple[NDArray[np.int32], NDArray[np.float32]]) -> NDArray[np.float32]:
    index, weight = found
    out = np.zeros((len(index), len(index)), np.float32)
    rows, places = np.nonzero(index >= 0)
    out[rows, index[rows, places]] = weight[rows, places]
    return out


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(5, 40), st.integers(1, 20))
def test_one_block_is_the_closed_form_and_every_list_is_well_formed(seed: int, n_items: int, block: int) -> None:
    users, items = tastes(30, n_items, 4, seed)
    whole = ease(users, items, n_items, neighbours=n_items, l2=5.0)
    same = ease(users, items, n_items, n_items, 5.0, settings=EaseSettings(largest=1, block=n_items, context=0))
    assert dense(same) == pytest.approx(dense(whole), abs=1e-5)
    covered = ease(users, items, n_items, n_items, 5.0, settings=EaseSettings(largest=1, block=block, context=n_items))
    assert dense(covered) == pytest.approx(dense(whole), abs=1e-4), "a context that holds everything"
    index, weight = ease(users, items, n_items, 7, 5.0, settings=EaseSettings(largest=1, block=block, context=3))
    assert index.shape == weight.shape == (n_items, 7)
    assert ((weight > 0) == (index >= 0)).all()
    assert (np.diff(weight, axis=1) <= 0).all(), "heaviest first"
    assert (index != np.arange(n_items)[:, None]).all(), "never itself"
    assert all(len(set(row[row >= 0].tolist())) == int((row >= 0).sum()) for row in index), "each once"


def test_blocks_with_a_context_come_near_the_closed_form() -> None:
    """Scores of users' next likes nearly equal those of the closed form, much better than without the context items."""
    n = 600
    users, items = tastes(1_500, n, 12)
    histories = np.zeros((1_500, n), np.float32)
    histories[users, items] = 1
    wanted = histories @ dense(ease(users, items, n, n, 20.0))

    def nearness(part: EaseSettings) -> tuple[float, float]:
        got = histories @ dense(ease(users, items, n, n, 20.0, settings=part))
        seen = np.where(histories > 0, -np.inf, 0)
        tops = [np.argsort(-(scores + seen), axis=1, kind="stable")[:, :10] for scores in (wanted, got)]
        same = np.mean([len(np.intersect1d(a, b)) / 10 for a, b in zip(*tops, strict=True)])
        return float(np.corrcoef(wanted.ravel(), got.ravel())[0, 1]), float(same)

    correlation, same = nearness(EaseSettings(largest=1, block=100, context=150))
    assert correlation > 0.97
    assert same > 0.8
    _, alone = nearness(EaseSettings(largest=1, block=100, context=0))
    assert alone < same - 0.1


def test_blocks_stay_within_their_memory() -> None:
    n, part = 4_000, EaseSettings(largest=1, block=200, context=200)
    users, items = tastes(1_000, n, 30)
    tracemalloc.start()
    index, _ = ease(users, items, n, 32, 20.0, settings=part)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (index >= 0).any(axis=1).sum() > n / 2
    assert peak < 4 * n * n / 3, "a third of one dense matrix; the closed form needs three"
