"""Minimum amounts of training data, checked before torch is loaded, so that an error appears within a second or two."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.dataset.needs import FEWEST_EVENTS
from models.rules import PositiveRule
from schemas.errors import BadDataset, ConfigError
from schemas.records import Interaction, Item
from training.data.corpus import Corpus
from training.data.events import EventFrame
from training.data.table import heads_of, of_known_items, published, vocabulary_of, windows_of
from training.recipe import LearnSettings

__all__ = ["FEWEST_EVENTS", "FEWEST_NEW", "demand_enough", "demand_trainable", "new_events"]

FEWEST_NEW = 50
"Minimum number of new events for an update."
NAMED = 6
"Maximum number of actions that a message lists."


def demand_enough(events: Sequence[Interaction], positive: str) -> None:
    """Raise BadDataset where these events, on known items, are too few to learn from, or none is liked."""
    if len(events) < FEWEST_EVENTS:
        message = f"too little to learn from: {len(events)} events on items of the catalogue, {FEWEST_EVENTS} are needed"
        raise BadDataset("too_little", message)
    rule = PositiveRule(positive)
    if not any(rule(event.action, event.value) for event in events):
        actions = Counter(event.action for event in events)
        there = ", ".join(f"{action} ({count:,})" for action, count in actions.most_common(NAMED))
        message = f"none of the {len(events):,} events is liked by the rule {positive!r}; their actions are {there}"
        raise BadDataset("too_little", message, "positive")


def demand_trainable(
    items: Sequence[Item], events: Sequence[Interaction], positive: str, settings: LearnSettings, file: Path | None = None
) -> None:
    """Check conditions that a training on `events` would otherwise fail on after minutes.

    `file`: the settings file, for messages.

    Raises:
        BadDataset: too few events, none liked, or no first interaction in the newer part, from which the ranker learns.
        ConfigError: a setting names an action that is not among the frequent ones.
    """
    vocabulary = vocabulary_of(events, positive)
    try:
        heads_of(events, vocabulary, positive, settings.heads)
        windows_of(settings.windows_s, vocabulary)
    except ConfigError as exc:
        raise ConfigError(exc.code, f"{file}: {exc.message}" if file else exc.message, exc.field) from exc
    known = of_known_items(events, published(items, events))
    demand_enough(known, positive)
    start = int(len(known) * (1 - settings.replayed_share))
    if not _first_interactions(known)[start:].any():
        message = f"in the newest {len(known) - start:,} events no user has a first interaction: nothing can be ranked"
        raise BadDataset("no_meetings", message)


def _first_interactions(events: Sequence[Interaction]) -> NDArray[np.bool_]:
    """Whether each event is the user's first interaction with its item: `(n,)`."""
    frame = events.frame if isinstance(events, EventFrame) else EventFrame.of(events).frame
    first = frame.select(pl.struct("user_id", "item_id").is_first_distinct()).to_series()
    return np.asarray(first.to_numpy(), np.bool_)


def new_events(corpus: Corpus, share: float, since_ms: int) -> int:
    """Number of events later than `since_ms`, among the first `share` of the events on items published by then."""
    part = corpus.until(share)
    events = part.events
    if isinstance(events, EventFrame):
        events = EventFrame(events.frame.filter(pl.col("event_time") > since_ms))
    return sum(event.event_time > since_ms for event in of_known_items(events, part.items))
