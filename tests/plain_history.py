"""The user tower's inputs of one user, in plain code: what the columns of a batch are compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.release.sequences import LENGTH, Vocabulary, event_inputs
from models.state.rows import UserRecord

__all__ = ["history_inputs", "liked_history"]


def liked_history(vocabulary: Vocabulary, user: UserRecord) -> NDArray[np.bool_]:
    """Whether each kept event is liked, newest first."""
    events = user.history
    names, actions, values = user.actions, events["action"][::-1].tolist(), events["value"][::-1].tolist()
    return np.asarray([vocabulary.liked(names[a], v) for a, v in zip(actions, values, strict=True)], np.bool_)


def history_inputs(user: UserRecord, vocabulary: Vocabulary, liked: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The newest LENGTH events as inputs, oldest first; `liked` is the result of `liked_history`."""
    events = user.history[-LENGTH:]
    gaps = np.diff(user.history["time"][-LENGTH - 1 :])
    gaps = gaps if len(gaps) == len(events) else np.concatenate([np.zeros(1, np.int64), gaps])
    values = events["value"]
    slots = vocabulary.slots(user.actions)[events["action"]]
    return event_inputs(slots, vocabulary.standard(values), ~np.isnan(values), gaps, liked[: len(events)][::-1])
