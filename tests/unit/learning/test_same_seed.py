"""The same seed gives the same weights, also with several threads."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from schemas.records import Interaction, Item
from training.data.table import EventTable, heads_of, vocabulary_of
from training.recipe import TowerSettings
from training.retrieval.fit_towers import train_towers
from training.retrieval.towers import Content

POSITIVE = "action == 'like'"
ITEMS = 3_000


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_towers_trained_twice_are_the_same_bit_for_bit(two_threads: None) -> None:
    rng = np.random.default_rng(0)
    people, liked = rng.integers(0, 60, 8_000).tolist(), rng.integers(0, ITEMS, 8_000).tolist()
    events = [Interaction(f"e{n}", f"u{people[n]}", f"i{liked[n]}", n * 1_000, "like") for n in range(len(people))]
    vocabulary = vocabulary_of(events, POSITIVE)
    table = EventTable.of(events, [Item(f"i{n}") for n in range(ITEMS)], vocabulary, heads_of(events, vocabulary, POSITIVE))
    text = rng.normal(size=(ITEMS, 128)).astype(np.float32)
    empty = np.zeros((ITEMS, 128), np.float32), np.zeros((ITEMS, 64), np.float32)
    content = Content(empty[0], text, empty[1], np.ones((ITEMS, 2), np.float32))
    weights = []
    for _ in range(2):
        towers = train_towers(table, content, TowerSettings(seed=1, epochs=1))
        weights.append(torch.cat([part.detach().reshape(-1) for tower in towers for part in tower.parameters()]))
    assert torch.equal(*weights)
