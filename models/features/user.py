"""Features of a user, the same for all candidates of a query. Users without history have zeros."""

from __future__ import annotations

import numpy as np

from models.features.kernels import columns
from models.features.spec import Group, Values
from models.pipeline.batch import Model, Queries
from models.units import DAY_MS

__all__ = ["USER", "OfUsers"]


class OfUsers:
    """The q users of a batch as of stream time."""

    def __init__(self, queries: Queries, now_ms: int, model: Model) -> None:
        """`now_ms`: stream time."""
        self.users, self.liked, self.now_ms, self.model = queries.users, queries.liked, now_ms, model
        "`liked`: whether the release counts each event as liked, newest first: bool `(q, HISTORY)`."


USER = Group[OfUsers]()


@USER.feature("user_events", "user_history", "user_value", "user_liked_share", "user_idle", "user_session", "user_span")
def user(of: OfUsers) -> Values:
    """What is known of the user. Numbers of events and of days are logarithms of one plus the number.

    - `user_events`, `user_history`: number of events so far, and of those that are kept.
    - `user_value`: mean of the standardised values of kept events; 0 where none has a value.
    - `user_liked_share`: share of kept events that are liked.
    - `user_idle`: days since the newest event.
    - `user_session`: number of events in the newest session.
    - `user_span`: days between the oldest and the newest event.
    """
    users, out = of.users, np.zeros((len(of.users), len(USER.features)), np.float32)
    columns.of_users(
        users.events,
        users.size,
        users.value,
        of.liked,
        users.first_ms,
        users.last_ms,
        users.session_events,
        of.now_ms,
        float(DAY_MS),
        of.model.vocabulary.scale,
        out,
    )
    return out
