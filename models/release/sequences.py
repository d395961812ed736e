"""The user tower's inputs from a user's history: a single definition for training and serving."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from models.features.kernels.values import standard
from models.rules import PositiveRule
from models.state.users import Users

__all__ = ["ACTION_SLOTS", "EVENT_WIDTH", "LENGTH", "Vocabulary", "event_inputs", "length_of"]

LENGTH = 64
"Maximum number of newest events that the user tower reads."
STEP = 8
"Histories are padded to a multiple of this length."
ACTION_SLOTS = 8
"Number of action slots; all actions without a slot of their own share the last."
MOST = np.float32(5)
"Largest standardised value."
EVENT_WIDTH = 4 + ACTION_SLOTS
"Inputs per event: standardised value, has a value, log gap to the previous event, liked, one-hot action."


class Vocabulary:
    """A release's encoding of events: its action slots, the mean and deviation of values, and the positive rule."""

    def __init__(self, actions: Sequence[str], value_mean: float, value_deviation: float, positive: str) -> None:
        self.actions = tuple(actions[: ACTION_SLOTS - 1])
        self._slot: Mapping[str, int] = {name: n for n, name in enumerate(self.actions)}
        self.value_mean, self.value_deviation = value_mean, max(value_deviation, 1e-6)
        self.scale = np.asarray([self.value_mean, self.value_deviation, MOST], np.float32)
        "Mean and deviation by which values are standardised, and the size to which they are clipped."
        self._rule = PositiveRule(positive)
        self._liked: dict[tuple[str, float], bool] = {}

    def slots(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return the slot of each action name."""
        return np.asarray([self._slot.get(name, ACTION_SLOTS - 1) for name in names], np.int64)

    def standard(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise values and clip them to ±5; NaN (no value) becomes 0."""
        flat, out = np.ascontiguousarray(values, np.float32).reshape(-1), np.empty(values.shape, np.float32)
        standard(flat, *self.scale, out.reshape(-1))
        return out

    def liked(self, action: str, value: float) -> bool:
        """Return whether an event counts as liked; `value` is NaN if it has none."""
        key = (action, value if value == value else -np.inf)  # noqa: PLR0124 - NaN differs from itself
        found = self._liked.get(key)
        if found is None:
            found = self._rule(action, None if value != value else value)  # noqa: PLR0124
            if len(self._liked) < 100_000:
                self._liked[key] = found
        return found

    def liked_of(self, users: Users) -> NDArray[np.bool_]:
        """Return whether each kept event is liked, newest first, False beyond the kept ones: bool `(q, HISTORY)`."""
        liked = np.zeros(users.action.shape, np.bool_)
        flat, actions, values = liked.reshape(-1), users.action.reshape(-1), users.value.reshape(-1)
        # one stable sort instead of one search per action, because users may have many actions
        order = np.argsort(actions, kind="stable")
        bounds = np.searchsorted(actions[order], np.arange(len(users.actions) + 1))
        for n in np.flatnonzero(np.diff(bounds)).tolist():
            events = order[bounds[n] : bounds[n + 1]]
            flat[events] = self._rule.many(users.actions[n], values[events])
        return liked


def event_inputs(
    slots: NDArray[np.int64],
    values: NDArray[np.float32],
    has_value: NDArray[np.bool_],
    gaps_ms: NDArray[np.int64],
    liked: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Encode event columns `(n,)`, oldest first, as inputs of the user tower: float32 `(n, EVENT_WIDTH)`.

    `values` are standardised; `gaps_ms` is the time since the previous event (0 for the first).
    """
    out = np.zeros((len(slots), EVENT_WIDTH), np.float32)
    out[:, 0] = values
    out[:, 1] = has_value
    out[:, 2] = np.log1p(np.maximum(gaps_ms, 0) / 60_000.0) / 10.0
    out[:, 3] = liked
    out[np.arange(len(slots)), 4 + slots] = 1.0
    return out


def length_of(users: Users) -> int:
    """Return the length of histories that holds the newest events of each user: a multiple of STEP, at most LENGTH."""
    longest = int(users.size.max(initial=1))
    return min(-(-max(longest, 1) // STEP) * STEP, LENGTH)


def inputs_of(
    users: Users, vocabulary: Vocabulary, liked: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Encode the newest events of q users by `event_inputs`; `liked` is the result of `Vocabulary.liked_of`.

    Returns inputs, float32 `(q, length, EVENT_WIDTH)`, and 1 for each event, float32 `(q, length)`, with `length_of(users)`.
    Both are oldest first and end with the newest event; zeros precede a shorter history.
    """
    length = length_of(users)
    kept = np.arange(length) < users.size[:, None]
    q, n = np.nonzero(kept)
    first = n + 1 == users.size[q]
    gaps = np.where(first, 0, users.time[q, n] - users.time[q, n + 1])
    values, slots = users.value[q, n], vocabulary.slots(users.actions)[users.action[q, n]]
    events = np.zeros((len(users), length, EVENT_WIDTH), np.float32)
    events[q, length - 1 - n] = event_inputs(slots, vocabulary.standard(values), ~np.isnan(values), gaps, liked[q, n])
    return events, np.ascontiguousarray(kept[:, ::-1], np.float32)
