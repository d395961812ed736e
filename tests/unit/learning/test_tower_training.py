"""A resumed training equals an uninterrupted one, alone and in a group; the sampled softmax estimates the full one."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from tower_corpus import tower_corpus

from schemas.errors import StoreCorrupt
from training.data.table import EventTable
from training.loop.checkpoints import Checkpoints, read_checkpoint
from training.loop.group import Group
from training.recipe import TowerSettings
from training.retrieval import fit_towers
from training.retrieval.fit_towers import Progress, train_towers
from training.retrieval.negatives import NEVER, cold_logsumexp, discount_cold_negatives, drawn_pool, first_interaction_ms
from training.retrieval.next_item import Validation
from training.retrieval.simulated_cold import Retrieval, simulate_cold
from training.retrieval.towers import Content, ItemTower, UserTower, item_vectors

few = settings(max_examples=60, deadline=None)
TINY = TowerSettings(dimensions=8, blocks=1, epochs=2, batch=8, rate=1e-2)


def weights(towers: tuple[nn.Module, ...]) -> dict[str, Tensor]:
    return {f"{n}.{name}": value for n, tower in enumerate(towers) for name, value in tower.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Stopped(Exception):
    pass


def noting(steps: list[int]) -> Progress:
    """Adds each step that is done."""
    return lambda done, _: steps.append(done)


def stopped_at(step: int, folder: Checkpoints) -> None:
    table, content = tower_corpus()

    def progress(done: int, of: int) -> None:
        if done == step:
            raise Stopped

    with pytest.raises(Stopped):
        train_towers(table, content, TINY, progress, checkpoints=folder)


# ---- checkpoints


@pytest.mark.parametrize("full_softmax", [20_000, 10])
def test_a_training_stopped_anywhere_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_softmax: int
) -> None:
    monkeypatch.setattr(fit_towers, "FULL_SOFTMAX", full_softmax)
    monkeypatch.setattr(fit_towers, "SAMPLED", 8)
    torch.set_num_threads(1)
    table, content = tower_corpus()
    of: list[int] = []
    whole = weights(train_towers(table, content, TINY, lambda done, n: of.append(n)))
    for step in (2, of[0] // 2, of[0] // 2 + 1, of[0]):
        folder = Checkpoints(tmp_path / f"{step}", every=1)
        stopped_at(step, folder)
        steps: list[int] = []
        again = train_towers(table, content, TINY, noting(steps), checkpoints=folder)
        assert steps[0] == step, "it goes on where it was"
        assert equal(weights(again), whole)
        steps.clear()
        finished = train_towers(table, content, TINY, noting(steps), checkpoints=folder)
        assert not steps, "what is done is not done again"
        assert equal(weights(finished), whole)


def test_a_damaged_checkpoint_is_passed_over_and_those_of_other_settings_are_not_touched(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path, every=2)
    stopped_at(8, folder)
    (training,) = tmp_path.iterdir()
    older, newer = sorted(training.iterdir())
    assert [older.name, newer.name] == ["step-000000004", "step-000000006"], "the newest two are kept"
    data = bytearray((newer / "tensors.safetensors").read_bytes())
    data[-1] ^= 1
    (newer / "tensors.safetensors").write_bytes(bytes(data))
    with pytest.raises(StoreCorrupt):
        read_checkpoint(newer)
    found = folder.newest(training.name)
    assert found is not None
    assert found.step == 4
    (older / "state.json").write_text("{")
    assert folder.newest(training.name) is None
    assert folder.newest("0" * 16) is None


# ---- a group of processes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_end_with_the_same_weights_and_go_on_after_one_is_killed(tmp_path: Path) -> None:
    tests = Path(__file__).parents[2]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["--standalone", "--local-addr", "127.0.0.1", "-m", "tower_process", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests.parent), str(tests)])
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=550, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2))
    assert equal(first, second), "both processes hold the same towers"
    assert "first_step.9" in first, "the second life begins after the checkpoint of step 8"
    resumed = {name.removeprefix("resumed."): value for name, value in first.items() if name.startswith("resumed.")}
    whole = {name.removeprefix("whole."): value for name, value in first.items() if name.startswith("whole.")}
    assert equal(resumed, whole), "killed and resumed is as never killed"


# ---- the sampled softmax


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 500), st.lists(st.integers(0, 499), min_size=1, max_size=60), st.integers(1, 200), st.integers(0, 99))
def test_a_pool_holds_what_the_batch_holds_for_certain(n: int, batch: list[int], sampled: int, seed: int) -> None:
    certain = np.asarray(batch, np.int64) % n
    pool, log_chance = drawn_pool(certain, n, sampled, np.random.default_rng(seed))
    assert (np.diff(pool) > 0).all()
    assert np.isin(certain, pool).all()
    assert (log_chance[np.isin(pool, certain)] == 0).all()
    assert (log_chance <= 0).all()


def test_the_sampled_softmax_is_an_unbiased_stand_in_for_the_full_one() -> None:
    """Its partition sum equals the full one on average for any batch; loss and gradient approximate the full ones."""
    rng = np.random.default_rng(0)
    n, sampled, draws = 600, 150, 800
    vectors = torch.from_numpy(rng.normal(size=(n, 8)).astype(np.float32) * 0.6).requires_grad_()
    users = torch.from_numpy(rng.normal(size=(5, 8)).astype(np.float32))
    targets = np.asarray([1, 1, 4, 300, 2], np.int64)
    certain = np.concatenate([targets, np.arange(40), [5, 5, 7]])  # the history of the batch: nearly always popular items
    logits = users @ vectors.T
    full = F.cross_entropy(logits, torch.from_numpy(targets))
    (wanted,) = torch.autograd.grad(full, vectors)
    whole = torch.exp(logits).sum(dim=1).detach().numpy()
    sums, losses, gradient, uncorrected = [], [], torch.zeros_like(vectors), []
    for _ in range(draws):
        pool, log_chance = drawn_pool(certain, n, sampled, rng)
        part = users @ vectors[torch.from_numpy(pool)].T - torch.from_numpy(log_chance)
        sums.append(torch.exp(part).sum(dim=1).detach().numpy())
        uncorrected.append(torch.exp(part + torch.from_numpy(log_chance)).sum(dim=1).detach().numpy())
        loss = F.cross_entropy(part, torch.from_numpy(np.searchsorted(pool, targets)))
        losses.append(loss.item())
        gradient += torch.autograd.grad(loss, vectors)[0] / draws
    error = np.std(sums, axis=0) / np.sqrt(draws)
    assert (np.abs(np.mean(sums, axis=0) - whole) < 4 * error).all()
    assert (np.abs(np.mean(uncorrected, axis=0) - whole) > 20 * error).all(), "without the correction it is far off"
    assert np.mean(losses) == pytest.approx(full.item(), abs=0.05), "a logarithm of an estimate is a little low"
    assert float(F.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0)) > 0.995
    assert float((gradient - wanted).norm() / wanted.norm()) < 0.1


# ---- missing modalities


@pytest.mark.parametrize("full_softmax", [20_000, 10])
def test_what_stands_for_a_missing_text_or_image_is_learned_where_no_item_lacks_it(
    monkeypatch: pytest.MonkeyPatch, full_softmax: int
) -> None:
    monkeypatch.setattr(fit_towers, "FULL_SOFTMAX", full_softmax)
    monkeypatch.setattr(fit_towers, "SAMPLED", 8)
    torch.set_num_threads(1)
    table, content = tower_corpus()
    content.image = np.random.default_rng(1).normal(size=content.image.shape).astype(np.float32)
    content.present = np.ones_like(content.present)
    for share in (0.0, 0.3):
        _, tower = train_towers(table, content, replace(TINY, hidden_content=share))
        assert tower.missing.any(dim=1).tolist() == [share > 0] * 2


# ---- items without interactions


def id_gradients(table: EventTable, content: Content, unmet: float) -> Tensor:
    """Gradients of the loss of a first step over some windows, by item: `(n, d)`."""
    # without the mean of the history, whose weights begin large: no item then has all of the probability
    settings = replace(TINY, hidden_ids=0.0, hidden_content=0.0, unmet=unmet, resemblance=0.0)
    torch.manual_seed(0)  # the same weights for every setting
    user, item = UserTower(settings).eval(), ItemTower(len(content.text), 6, 4, settings.dimensions)
    steps = fit_towers._Steps(table, first_interaction_ms(table, len(content.text)), settings, Group.current())
    step = steps.step(np.arange(3), np.random.default_rng(0))
    assert step is not None
    assert len(step.targets) > 3
    fit_towers._Towers(user, item, content.tensors(), settings).eval()(step).backward()
    assert item.ids.weight.grad is not None
    return item.ids.weight.grad


@pytest.mark.parametrize("full_softmax", [20_000, 10])
def test_what_nobody_has_met_counts_as_not_chosen_as_little_as_the_setting_says(
    monkeypatch: pytest.MonkeyPatch, full_softmax: int
) -> None:
    monkeypatch.setattr(fit_towers, "FULL_SOFTMAX", full_softmax)
    monkeypatch.setattr(fit_towers, "SAMPLED", 30)
    table, content = tower_corpus()
    kept = table.item % 4 > 0
    part = table.take(kept)
    first = first_interaction_ms(part, len(content.text))
    unmet = np.arange(len(content.text)) % 4 == 0
    assert (first[unmet] == NEVER).all()
    assert all(first[n] == part.time_ms[part.item == n].min() for n in np.flatnonzero(~unmet))
    none, little, whole = (id_gradients(part, content, share)[unmet] for share in (0.0, 0.1, 1.0))
    assert not none.any()
    assert 0 < float(little.norm()) < 0.2 * float(whole.norm())


TIMES = st.sampled_from([3, 5, 5, 8, 13, NEVER])


@few
@given(
    st.lists(st.tuples(st.floats(-20, 20, width=32), TIMES), min_size=1, max_size=30),
    st.lists(st.integers(3, 20), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
)
def test_before_its_first_meeting_an_item_counts_a_share_in_each_sum(
    items: list[tuple[float, int]], times: list[int], unmet: float
) -> None:
    items = [(0.5, 3), *items]  # at least one item has interactions
    logits = torch.tensor([logit for logit, _ in items])
    first, when = torch.tensor([first for _, first in items]), torch.tensor(times)
    plain = [np.log(sum(np.exp(logit) * (unmet if first_ms > time else 1.0) for logit, first_ms in items)) for time in times]
    rows = logits.repeat(len(times), 1)
    assert torch.logsumexp(discount_cold_negatives(rows, first, when, unmet), 1).numpy() == pytest.approx(plain, abs=1e-4)
    assert cold_logsumexp(logits, first, when, unmet).numpy() == pytest.approx(plain, abs=1e-3)


def test_text_and_image_say_nothing_before_they_are_learned() -> None:
    _, content = tower_corpus()
    content.image = np.ones_like(content.image)
    tower = ItemTower(len(content.text), 6, 4, 8).eval()
    without = replace(content, present=np.zeros_like(content.present))
    met = np.zeros(len(content.text), np.bool_)
    assert np.array_equal(item_vectors(tower, content, met), item_vectors(tower, without, met))


def test_an_item_that_nobody_met_is_ranked_by_what_it_is() -> None:
    """Each user likes one colour: for most of them a new item of it ranks above old items of other colours."""
    torch.set_num_threads(1)
    table, content = tower_corpus(n_users=30)
    kept = table.item < 30
    part = table.take(kept)
    people = Validation(part, content, len(part) // 2, 0)
    colour = np.arange(len(content.text)) % 3
    user, item = train_towers(part, content, replace(TINY, dimensions=16, epochs=30))
    vectors = item_vectors(item, content, np.arange(len(colour)) >= 30)
    with torch.inference_mode():
        scores = people._users(user, torch.from_numpy(vectors), people._rows).numpy() @ vectors.T
    wanted = (colour == colour[target] for target in people._targets)
    above = [(row[30:][mine[30:], None] > row[:30][~mine[:30]]).mean() for row, mine in zip(scores, wanted, strict=True)]
    assert np.mean(above) > 0.8


@few
@given(share=st.floats(0, 1), seed=st.integers(0, 9), unmet=st.sets(st.integers(0, 11)))
def test_an_item_that_is_as_if_nobody_had_met_it_has_its_content_alone(share: float, seed: int, unmet: set[int]) -> None:
    _, content = tower_corpus()
    n = len(content.text)
    rng = np.random.default_rng(seed)
    tower = ItemTower(n, 6, 4, 8).eval()
    met = ~np.isin(np.arange(n), list(unmet))
    index = rng.integers(-1, n, (n, 5)).astype(np.int32)
    weight = np.where(index >= 0, rng.random((n, 5)), 0).astype(np.float32)
    made = Retrieval(UserTower(TINY), tower, item_vectors(tower, content, ~met), met, index, weight)
    found = simulate_cold(made, content, share, seed)
    hidden = made.met & ~found.met
    assert hidden.sum() == int(met.sum() * share)
    assert not (found.met & ~made.met).any()
    by_content = item_vectors(tower, content, np.ones(n, np.bool_))
    assert np.array_equal(found.vectors[hidden], by_content[hidden])
    assert np.array_equal(found.vectors[~hidden], made.vectors[~hidden])
    gone = ~found.met[:, None] | (~found.met[index] & (index >= 0))
    assert (found.ease_index[gone] == -1).all()
    assert (found.ease_weight[gone] == 0).all()
    assert np.array_equal(found.ease_index[~gone], index[~gone])
    assert np.array_equal(found.ease_weight[~gone], weight[~gone])
    again = simulate_cold(made, content, share, seed)
    assert np.array_equal(again.met, found.met)
