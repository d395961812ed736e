"""Features of a user, the same for all candidates of a query. Users without history have zeros."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.features.spec import Group, Values, once
from models.pipeline.batch import Model, Queries
from models.state.rows import HISTORY
from models.units import DAY_MS

__all__ = ["USER", "OfUsers"]


class OfUsers:
    """The q users of a batch as of stream time; columns that several features share are computed at first use."""

    def __init__(self, queries: Queries, now_ms: int, model: Model) -> None:
        """`now_ms`: stream time."""
        self.users, self.liked, self.now_ms, self.model = queries.users, queries.liked, now_ms, model
        "`liked`: whether the release counts each event as liked, newest first: bool `(q, HISTORY)`."

    @once
    def kept(self) -> NDArray[np.bool_]:
        """Whether each place of the histories holds an event: bool `(q, HISTORY)`."""
        found: NDArray[np.bool_] = np.arange(HISTORY) < self.users.size[:, None]
        return found


USER = Group[OfUsers]()


@USER.feature("user_events")
def user_events(of: OfUsers) -> Values:
    """Number of events so far, as a logarithm."""
    return np.log1p(of.users.events)


@USER.feature("user_history")
def user_history(of: OfUsers) -> Values:
    """Number of events that are kept, as a logarithm."""
    return np.log1p(of.users.size)


@USER.feature("user_value")
def user_value(of: OfUsers) -> Values:
    """Mean of the standardised values of kept events; 0 where none has a value."""
    valued = of.kept & ~np.isnan(of.users.value)
    total = np.where(valued, of.model.vocabulary.standard(of.users.value), 0).sum(axis=1)
    mean: Values = total / np.maximum(valued.sum(axis=1), 1)
    return mean


@USER.feature("user_liked_share")
def user_liked_share(of: OfUsers) -> Values:
    """Share of kept events that are liked."""
    share: Values = of.liked.sum(axis=1) / np.maximum(of.users.size, 1)
    return share


@USER.feature("user_idle")
def user_idle(of: OfUsers) -> Values:
    """Days since the newest event, as a logarithm."""
    return np.log1p(np.maximum(of.now_ms - of.users.last_ms, 0) / DAY_MS)


@USER.feature("user_session")
def user_session(of: OfUsers) -> Values:
    """Number of events in the newest session, as a logarithm."""
    return np.log1p(of.users.session_events)


@USER.feature("user_span")
def user_span(of: OfUsers) -> Values:
    """Days between the oldest and the newest event, as a logarithm."""
    days: Values = np.log1p(np.maximum(of.users.last_ms - of.users.first_ms, 0) / DAY_MS)
    return days
