"""A small training set for the towers."""

from __future__ import annotations

import numpy as np
from learning_corpus import POSITIVE, corpus

from models.items.store import text_vector
from training.data.table import EventTable, heads_of, vocabulary_of
from training.retrieval.towers import Content


def tower_corpus(n_users: int = 30) -> tuple[EventTable, Content]:
    """What the towers are trained on, with drawn content vectors."""
    items, events = corpus(n_users=n_users)
    vocabulary = vocabulary_of(events, POSITIVE)
    table = EventTable.of(events, items, vocabulary, heads_of(events, vocabulary, POSITIVE))
    rng = np.random.default_rng(0)
    text = rng.normal(size=(len(items), 6)).astype(np.float32)
    hashed = np.stack([text_vector(item) for item in items])
    present = np.tile(np.asarray([1, 0], np.float32), (len(items), 1))
    return table, Content(hashed, text, np.zeros((len(items), 4), np.float32), present)
