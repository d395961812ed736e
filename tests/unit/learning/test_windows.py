"""Windows over histories: each event is predicted once, and packing changes no state of the user tower."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tower_corpus import tower_corpus

from models.release.sequences import EVENT_WIDTH, LENGTH
from training.data.table import EventTable
from training.recipe import TowerSettings
from training.retrieval.fit_towers import train_towers
from training.retrieval.towers import ItemTower, UserTower
from training.retrieval.windows import STRIDE, Packed, Windows

COUNTS = st.lists(st.integers(1, 3 * LENGTH), min_size=1, max_size=8)


def windows_of(counts: list[int], seed: int = 0) -> tuple[Windows, NDArray[np.int64]]:
    """Windows over users with that many events, whose order is mixed, and the user of each event."""
    user = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    zeros = np.zeros(len(user), np.int64)
    columns = dict.fromkeys(EventTable.__slots__, zeros) | {"user": user}
    return Windows.of(EventTable(**columns)), user


def everything(windows: Windows) -> Packed:
    return windows.pack(np.arange(len(windows)))


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.integers(0, 9))
def test_each_event_but_a_users_first_is_predicted_once_from_the_events_just_before_it(counts: list[int], seed: int) -> None:
    windows, user = windows_of(counts, seed)
    packed = everything(windows)
    predicted = packed.following[packed.following >= 0]
    firsts = [int(np.flatnonzero(user == n)[0]) for n in range(len(counts))]
    assert sorted([*predicted.tolist(), *firsts]) == list(range(len(user)))
    for row, place in np.argwhere(packed.following >= 0):
        target = packed.following[row, place]
        mine = packed.rows[row, : place + 1][packed.window[row, : place + 1] == packed.window[row, place]]
        before = np.flatnonzero(user[:target] == user[target])
        assert mine.tolist() == before[-len(mine) :].tolist()
        assert len(mine) == len(before) or len(mine) > STRIDE, "a long history is read at least to half of the length"


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.integers(0, 9))
def test_packed_rows_hold_each_window_whole_and_little_padding(counts: list[int], seed: int) -> None:
    windows, _ = windows_of(counts, seed)
    part = np.random.default_rng(seed).permutation(len(windows))
    packed = windows.pack(part)
    for number, window in enumerate(part.tolist()):
        rows, places = np.nonzero(packed.window == number)
        assert len(set(rows.tolist())) == 1
        assert (np.diff(places) == 1).all()
        begin = windows.start[window]
        assert packed.rows[rows, places].tolist() == windows.order[begin : begin + windows.length[window]].tolist()
    assert ((packed.rows >= 0) == (packed.window >= 0)).all()
    two = (packed.rows >= 0).sum(axis=1)
    assert (two[:-1] + two[1:] > LENGTH).all(), "two neighbouring rows never fit into one"


def test_a_step_holds_as_many_windows_whether_they_are_long_or_short() -> None:
    assert windows_of([LENGTH] * 320)[0].steps(32) == 10
    assert windows_of([4] * 321)[0].steps(32) == 11
    assert windows_of([1])[0].steps(32) == 1


def test_towers_learn_the_same_from_packed_rows_as_from_one_window_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    table, content = tower_corpus()
    # without random draws, which depend on the rows' shape
    how = TowerSettings(dimensions=8, blocks=2, epochs=3, batch=4, rate=1e-2, dropout=0.0, hidden_ids=0.0, hidden_content=0.0)
    assert len(everything(Windows.of(table)).rows) < len(Windows.of(table))
    packed = train_towers(table, content, how)
    monkeypatch.setattr("training.retrieval.windows._places", one_a_row)
    alone = train_towers(table, content, how)
    before = train_towers(table, content, replace(how, epochs=1))
    assert all(torch.allclose(*two, atol=2e-4) for two in zip(parameters(packed), parameters(alone), strict=True))
    assert not all(torch.allclose(*two, atol=2e-3) for two in zip(parameters(alone), parameters(before), strict=True))


def one_a_row(lengths: list[int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.arange(len(lengths)), np.zeros(len(lengths), np.int64)


def parameters(towers: tuple[UserTower, ItemTower]) -> list[torch.Tensor]:
    return [weight.detach() for tower in towers for weight in tower.parameters()]


def test_the_states_of_packed_windows_are_those_of_each_alone() -> None:
    windows, user = windows_of([3, 1, 20, 37, 2, 64, 5, 70])
    torch.manual_seed(0)
    tower = UserTower(TowerSettings(dimensions=16)).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.normal(size=(len(user), 17)).astype(np.float32))
    vectors[::7] = 0.0  # items without a vector
    inputs = torch.from_numpy(rng.random((len(user), EVENT_WIDTH), np.float32))

    def states(packed: Packed, window: torch.Tensor | None) -> torch.Tensor:
        rows = torch.from_numpy(packed.rows)
        there = (rows >= 0).float()
        at = rows.clamp(min=0)
        with torch.no_grad():
            return tower.states(vectors[at] * there[..., None], inputs[at] * there[..., None], there, window=window)

    together = everything(windows)
    assert len(together.rows) < len(windows)
    packed = states(together, torch.from_numpy(together.window))
    for number in range(len(windows)):
        alone = windows.pack(np.asarray([number]))
        # without windows, and ending with the row, as in serving
        length = int(windows.length[number])
        served = Packed(*(np.roll(part, LENGTH - length, axis=1) for part in (alone.rows, alone.following, alone.window)))
        expected = states(served, None)[0, LENGTH - length :]
        assert torch.allclose(packed[torch.from_numpy(together.window == number)], expected, atol=1e-4)
